"""What docs/reference/dealing_out.md shows deals out all samples, and no partition is left out."""

import re
from pathlib import Path

import jsonargparse
import pytest
import yaml

from fl_lightning import FederatedDataModule, data
from fl_lightning.data import Partition

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "dealing_out.md").read_text()
YAML = re.findall(r"(?<!-->\n)```yaml\n(.*?)```", PAGE, flags=re.DOTALL)  # but for those that a page's own test leaves out


@pytest.mark.parametrize("block", YAML, ids=lambda block: re.findall(r"class_path: (\w+)", block)[-1])
def test_configurations_deal_out_all_samples(block):
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(FederatedDataModule, "data")
    module = parser.instantiate(parser.parse_object(yaml.safe_load(block))).data
    module.setup("fit")
    assert len(module.clients) == 50
    assert int(module.sizes.sum()) == len(module.train)


def test_no_partition_is_left_out():
    known = {name for name in data.__all__ if isinstance(found := getattr(data, name), type) and issubclass(found, Partition)}
    assert set(re.findall(r"^\| `(\w+)`", PAGE, flags=re.MULTILINE)) == known - {"Partition"}
