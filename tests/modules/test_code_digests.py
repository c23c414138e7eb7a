"""Digests of a user's own code."""

import logging

import torch
from tiny import TinyClient, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import LastCheckpoint, RunRecord
from fl_lightning.modules.code_digests import changed, code_digests


def client(factor: str, comment: str = "") -> TinyClient:
    """A client of a class that is made anew under one name, as a notebook's cell does."""
    space = {"TinyClient": TinyClient, "__name__": "my_cell"}
    exec(  # as notebooks do
        f"""class Mine(TinyClient):
    def training_step(self, batch, batch_idx):{comment}
        scale = {factor}
        return super().training_step(batch, batch_idx) * (scale if "a" in {{"a", "b", "c"}} else 1.0)
""".replace("super()", "super(type(self), self)"),
        space,
    )
    torch.manual_seed(0)
    return space["Mine"]()  # pyrefly: ignore[not-callable]


def test_code_that_does_something_else_has_another_digest_and_comments_do_not_count():
    one, same, other = (code_digests([c]) for c in (client("1.0"), client("1.0", comment="  # a word"), client("2.0")))
    assert "my_cell.Mine" in one
    assert changed(one, same) == []
    assert changed(one, other) == ["my_cell.Mine"]


def go_on(folder, factor: str, rounds: int, ckpt_path: str | None) -> None:
    callbacks = [RunRecord(), LastCheckpoint()]
    trainer = tiny_trainer(rounds, callbacks=callbacks, default_root_dir=folder, enable_checkpointing=True)
    trainer.fit(tiny_federation(client=client(factor)), tiny_data(), ckpt_path=ckpt_path)


def test_a_resume_with_other_code_says_so(tmp_path, caplog):
    go_on(tmp_path, "1.0", 1, None)
    with caplog.at_level(logging.WARNING):
        go_on(tmp_path, "1.0", 2, "last")
    assert "was changed since" not in caplog.text
    with caplog.at_level(logging.WARNING):
        go_on(tmp_path, "2.0", 3, "last")
    assert "my_cell.Mine was changed since the checkpoint was written" in caplog.text
