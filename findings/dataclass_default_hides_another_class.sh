#!/usr/bin/env bash
# Asked for a class by its class_path, a parser makes an object of another one.
#
# What one would expect: an argument that takes a dataclass or another class, with a dataclass as its default, can be given the other
# class by its class_path; that class is made, and what the parser dumps names it, so that it means the same when it is read again.
# What happens: class_path is dropped, and the arguments alone are left. Where both classes have arguments of these names, as
# here, the dataclass is made, without a word. Where they have not, the class that was asked for is made, but what is dumped is
# refused when it is read again.
#
# Versions: jsonargparse 4.53.0. It is so where the default is an instance of the dataclass and the union an argument of a class that
# the parser takes by class_path; with None for a default nothing is lost. Source: jsonargparse/_typehints.py takes pure dataclasses
# for classes without subclasses, unless set_parsing_settings(subclasses_enabled=[...]) names them, with which nothing is lost either.
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'jsonargparse[signatures]==4.53.0'

cat > asked.py <<'PYTHON'
import sys
from dataclasses import dataclass

from jsonargparse import ArgumentParser, set_parsing_settings


@dataclass
class Drawn:
    samples: int = 8


class Stored:
    def __init__(self, samples: int = 8):
        self.samples = samples


class Rule:
    def __init__(self, inputs: Drawn | Stored = Drawn()):
        self.inputs = inputs


if "told" in sys.argv:
    set_parsing_settings(subclasses_enabled=[Drawn])
parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--rule", type=Rule)
parsed = parser.parse_args(["--rule=Rule", "--rule.inputs=Stored", "--rule.inputs.samples=3"])
text = parser.dump(parsed)
made = type(parser.instantiate(parsed).rule.inputs).__name__
print(text, "asked for Stored, made", made)
raise SystemExit(0 if made == ("Stored" if "told" in sys.argv else "Drawn") else 1)
PYTHON

if venv/bin/python asked.py && venv/bin/python asked.py told; then
    echo "as described"
else
    echo "this has changed" >&2
    exit 1
fi
