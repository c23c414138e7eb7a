"""How far triggers move the test pictures of a sweep's runs on digits, as their last checkpoints have them, as CSV.

python docs/results/trigger_sizes.py runs/sweeps/digits-iba > trigger_sizes.csv

In units of the range from black to white: the mean over the pictures of the L2 norm of what changes, and the largest change of
a pixel in any of them. A picture (1, 8, 8) changed everywhere by all of it has an L2 norm of 8.
"""

import json
import sys
from pathlib import Path

import torch

from fl_lightning import attacks
from fl_lightning.checkpoints.newest import checkpoint_of
from fl_lightning.checkpoints.trained import read_checkpoint
from fl_lightning.data import IID, Digits


def main(folder: str) -> None:
    data = Digits(IID(num_clients=20))
    data.setup("fit")
    assert data.task is not None
    print("attack,seed,acc,asr,l2,linf")
    for cell in json.loads((Path(folder) / "sweep.json").read_text())["cells"]:
        for seed, run in cell["runs"].items():
            path = Path(folder).parents[1] / "pool" / run
            record = json.loads((path / "run.json").read_text())
            (entry,) = record["config"]["model"]["attacks"]
            attack = getattr(attacks, entry["class_path"].rpartition(".")[2])(**entry["init_args"])
            (state,) = read_checkpoint(checkpoint_of(path))["federation"]["attacks"]
            attack.load_state_dict(state)
            clean = data.task.test.subset(torch.nonzero(data.task.test.targets != attack.target_label).flatten())
            every = torch.arange(len(clean))
            stamped = attack.stamp(data.task.test)
            assert stamped is not None
            change = (stamped.batch(every)[0] - clean.batch(every)[0]).flatten(1)
            sizes = f"{change.norm(dim=1).mean():.3f},{change.abs().max():.3f}"
            last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
            print(f"{cell['labels']['attack']},{seed},{last['acc']:.3f},{last['asr']:.3f},{sizes}")


if __name__ == "__main__":
    main(*sys.argv[1:])
