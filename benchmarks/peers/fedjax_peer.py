"""Federated averaging by FedJAX: its `fed_avg` algorithm with Haiku models.

The backend is `jit`, which is both its default and, with one device, its fastest: a client's step is one compiled call. FedJAX
fills a client's last batch up with further samples of the client, so that all batches have one shape; 500 samples are 8 steps
of 64. Optimizers are compiled into the step and sampling of the cohort counts, as in its own examples.
"""

from __future__ import annotations

import time

import fedjax  # pyrefly: ignore[missing-import]
import haiku as hk  # pyrefly: ignore[missing-import]
import jax  # pyrefly: ignore[missing-import]
import numpy as np
from protocol import Answer, Run, Workload, serve  # pyrefly: ignore[missing-import]


def mlp(inputs: jax.Array) -> jax.Array:
    """Logits (b, 2) of inputs (b, 45)."""
    return hk.nets.MLP([128, 256, 2])(inputs)


def cnn(images: jax.Array) -> jax.Array:
    """Logits (b, 10) of images (b, 32, 32, 3): channels innermost, as Haiku and XLA prefer."""
    first = [hk.Conv2D(32, 3), jax.nn.relu, hk.MaxPool(2, 2, "VALID")]
    second = [hk.Conv2D(64, 3), jax.nn.relu, hk.MaxPool(2, 2, "VALID")]
    return hk.Sequential([*first, *second, hk.Flatten(), hk.Linear(512), jax.nn.relu, hk.Linear(10)])(images)


def dropout_cnn(images: jax.Array, train: bool) -> jax.Array:
    """The same with dropout, of the same images."""
    x = hk.Conv2D(64, 3, padding="VALID")(jax.nn.relu(hk.Conv2D(32, 3, padding="VALID")(images)))
    x = hk.Flatten()(dropout(hk.MaxPool(2, 2, "VALID")(jax.nn.relu(x)), 0.25, train))
    return hk.Linear(10)(dropout(jax.nn.relu(hk.Linear(128)(x)), 0.5, train))


def dropout(x: jax.Array, rate: float, train: bool) -> jax.Array:
    return hk.dropout(hk.next_rng_key(), rate, x) if train else x


def prepare(workload: Workload) -> dict[str, Run]:
    data = np.load(workload["data"])
    inputs, targets = data["inputs"], data["targets"]
    if inputs.ndim == 5:
        inputs = np.ascontiguousarray(inputs.transpose(0, 1, 3, 4, 2))
    clients = fedjax.InMemoryFederatedData({i: {"x": x, "y": y} for i, (x, y) in enumerate(zip(inputs, targets, strict=True))})
    forward = {"mlp": mlp, "cnn": cnn, "dropout_cnn": dropout_cnn}[workload["model"]]
    training, evaluation = ({"train": True}, {"train": False}) if forward is dropout_cnn else ({}, {})
    model = fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(lambda batch, **how: forward(batch["x"], **how)),
        sample_batch={"x": inputs[0, :1], "y": targets[0, :1]},
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits),
        train_kwargs=training,
        eval_kwargs=evaluation,
    )
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        grad_fn=fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(workload["learning_rate"], momentum=workload["momentum"]),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=workload["batch_size"], num_epochs=1, seed=0),
    )

    def run() -> Answer:
        state = algorithm.init(model.init(jax.random.PRNGKey(0)))
        sampler = fedjax.client_samplers.UniformGetClientSampler(clients, workload["clients_per_round"], seed=0)
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(workload["rounds"]):
            state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state)
        seconds = time.perf_counter() - began
        logits = model.apply_for_eval(state.params, {"x": inputs[:, :10].reshape(-1, *inputs.shape[2:])})
        losses = fedjax.metrics.unreduced_cross_entropy_loss(targets[:, :10].flatten(), logits)
        return {"seconds": seconds, "loss": float(losses.mean())}

    return {"rounds": run}


if __name__ == "__main__":
    serve(["fedjax", "jax"], prepare)
