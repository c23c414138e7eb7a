#!/usr/bin/env bash
# EMAWeightAveraging that starts after the last step throws the training away.
#
# What one would expect: an average that has not begun changes nothing, and the model ends with the weights that were trained.
# What happens: the callback copies the weights when training begins, shows the copy to every validation before the average has
# begun, and puts it back at the end: the trained weights are gone, in the model and in "state_dict" of checkpoints, without a word.
#
# Versions: lightning 2.6.6, torch 2.13.0. Source: lightning/pytorch/callbacks/weight_averaging.py: on_train_end copies the averaged
# model back whether or not it was ever updated, and so do on_validation_epoch_start and on_save_checkpoint.
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 lightning==2.6.6

cat > averaging.py <<'PYTHON'
import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return ((self.slope - batch) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        print("validation sees the slope", self.slope.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def on_train_batch_end(self, *_):
        self.trained = self.slope.item()


model, data = Line(), torch.utils.data.DataLoader(torch.ones(4), batch_size=1)
trainer = L.Trainer(
    max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, num_sanity_val_steps=0, callbacks=[EMAWeightAveraging(update_starting_at_step=100)],
)
trainer.fit(model, data, data)
print("the slope after the last step", model.trained)
print("the slope after fit", model.slope.item())
raise SystemExit(0 if model.trained == 1.0 and model.slope.item() == 0.0 else 1)
PYTHON

if venv/bin/python averaging.py 2>/dev/null; then
    echo "as described"
else
    echo "this has changed" >&2
    exit 1
fi
