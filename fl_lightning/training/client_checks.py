"""What a client must be for local training to work on it, found out before training: each mistake is one line.

`check_kind` looks at what was given as a client, `check_client` at the module, its tensors, its optimizer and its data.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from fl_lightning.checked import finite_settings
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError, folded
from fl_lightning.modules.frozen_base import base_names, frozen_bases
from fl_lightning.modules.hooks import uncalled_hooks
from fl_lightning.modules.lightning_modules import ClientModule, overrides
from fl_lightning.modules.predicting import predict
from fl_lightning.modules.undisturbed import undisturbed
from fl_lightning.training.batches import epoch_parts
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.optimizers import LocalScheduler, configured

log = logging.getLogger(__name__)

WRAPPERS = {
    "_orig_mod": "compiled by torch.compile; give the module itself, and compile layers in its constructor if at all",
    "module": "wrapped for training on several devices; give the module in it, as the federation shares clients out itself",
}
"""Attributes under which a wrapper keeps the module it was given, and what is wrong with it."""


def check_kind(client: Any) -> None:
    """Raise `ConfigurationError` if what was given as a client is not a LightningModule that was made."""
    if isinstance(client, type):
        raise ConfigurationError(
            f"model.client is the class {client.__name__}; give a module that was made of it: {client.__name__}(...)"
        )
    if not isinstance(client, ClientModule):
        for attribute, wrong in WRAPPERS.items():
            wrapped = getattr(client, attribute, None)
            if isinstance(wrapped, ClientModule):
                raise ConfigurationError(f"model.client is a {type(wrapped).__name__} that was {wrong}")
        kind = "scripted" if isinstance(client, torch.jit.ScriptModule) else "plain" if isinstance(client, nn.Module) else ""
        what = f"the {kind} torch module {type(client).__name__}" if kind else f"{client!r:.60} of type {type(client).__name__}"
        raise ConfigurationError(
            f"model.client is {what}, which says neither what its loss is nor how it is optimized; give a LightningModule with "
            "training_step and configure_optimizers, which may hold it as a layer"
        )
    if vars(client).get("_compiler_ctx") is not None:
        raise ConfigurationError(f"model.client is a {type(client).__name__} that was {WRAPPERS['_orig_mod']}")
    if "_modules" not in vars(client):
        raise ConfigurationError(
            f"the constructor of the client {type(client).__name__} does not call super().__init__(), without which it is no "
            "module; call it first"
        )


def check_client(client: L.LightningModule, sizes: Tensor, local: LocalTraining, samples: Samples | None = None) -> None:
    """Raise `ConfigurationError` if local training cannot train a module.

    Args:
        client: the module.
        sizes: (n,) int64, how many samples each client holds.
        local: how they train.
        samples: training data, to see what reaches the module's layers, where there are doubts.
    """
    name = f"the client {type(client).__name__}"
    check_steps(client, name)
    check_tensors(client, name)
    base = base_names(client)
    before = {place: parameter.detach().clone() for place, parameter in client.named_parameters() if place not in base}
    optimizer, scheduler = make_optimizer(client, name)
    changed = [place for place, parameter in client.named_parameters() if differs(parameter, before.get(place))]
    if changed:
        raise ConfigurationError(
            f"configure_optimizers of {name} changes parameter {changed[0]}, and it is called for every client and round: all "
            "would start from that in place of the global weights; initialise in the constructor"
        )
    check_optimizer(client, optimizer, name)
    check_scheduler(scheduler, int(sizes.max()), local, name)
    check_sparse_gradients(client, optimizer, local, name)
    check_batch_norm(client, sizes, local, samples)
    unused = uncalled_hooks(client)
    if unused:
        log.warning("local training does not call these hooks of %s: %s", name, ", ".join(unused))


def differs(parameter: Tensor, before: Tensor | None) -> bool:
    """Whether a parameter that was there has other values now."""
    return before is not None and not torch.equal(parameter, before)


def check_steps(client: L.LightningModule, name: str) -> None:
    """The module has a `training_step` that takes what it is given."""
    if not client.automatic_optimization:
        raise ConfigurationError(
            f"{name} asks for manual optimization; local training takes modules with one optimizer and "
            "automatic_optimization = True"
        )
    for method in ("training_step", "configure_optimizers"):
        if not overrides(client, method):
            raise ConfigurationError(
                f"{name} has no {method}; a client trains by its own training_step and configure_optimizers"
            )
    parameters = inspect.signature(client.training_step).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in needed]
    if len(needed) > 2 or not positional or by_name or "dataloader_iter" in needed:
        asked = [*(name for name in needed if name not in by_name), *(["*", *by_name] if by_name else [])]
        raise ConfigurationError(
            f"training_step of {name} takes ({', '.join(asked)}); local training gives it (batch, batch_idx) by their place, "
            "so it may ask for no more"
        )


def check_tensors(client: nn.Module, name: str) -> None:
    """Parameters and buffers have values, those that are trained in float32 or float64, and no layer asks other ranks."""
    for part in client.modules():
        if isinstance(part, nn.SyncBatchNorm):
            raise ConfigurationError(
                f"{name} has a SyncBatchNorm, which would mix clients that are trained on different ranks; use BatchNorm"
            )
    for place, tensor in (*client.named_parameters(), *client.named_buffers()):
        if is_lazy(tensor):
            kind = "parameter" if isinstance(tensor, UninitializedParameter) else "buffer"
            raise ConfigurationError(
                f"the {kind} {place} of {name} gets its shape with the first batch (a lazy layer), but updates need it before: "
                "call the module once on an example at the end of its constructor, or give the layer its sizes"
            )
        if tensor.is_meta:
            raise ConfigurationError(
                f"{place} of {name} lies on the meta device and has no values; make the module on cpu, or call "
                "to_empty(device='cpu') and initialise it"
            )
    for part in frozen_bases(client).values():
        if "base_sha256" not in part._buffers:
            raise ConfigurationError(
                f"{name} holds a {type(part).__name__}, which is a FrozenBase but has not said what its base is; call "
                "self.freeze_base() at the end of its constructor"
            )
    if not any(parameter.requires_grad for parameter in client.parameters()):
        raise ConfigurationError(
            f"{name} has no trainable parameter; nothing can be learned: leave some of them unfrozen, such as its last layer"
        )
    base = base_names(client)
    for place, parameter in client.named_parameters():
        if not parameter.requires_grad:
            continue
        if place in base:
            raise ConfigurationError(
                f"parameter {place} of {name} asks for gradients, but is part of its frozen base, which is never exchanged; "
                "call freeze_base() once it is settled what is trained"
            )
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ConfigurationError(
                f"parameter {place} of {name} has dtype {parameter.dtype}, but global weights are kept and aggregated in "
                "float32: make it float32 (model.float()), and set model.local.precision to bf16 for faster steps"
            )
        if not parameter.isfinite().all():
            raise ConfigurationError(
                f"parameter {place} of {name} is not finite before any training; look at how it is initialised"
            )


def make_optimizer(client: L.LightningModule, name: str) -> tuple[Optimizer, LocalScheduler]:
    """The module's optimizer and scheduler, as local training will make them for every client."""
    try:
        return configured(client)
    except ConfigurationError:
        raise
    except Exception as error:  # of the user's own
        raise ConfigurationError(f"configure_optimizers of {name} failed: {folded(error)} ({type(error).__name__})") from error


def check_optimizer(client: L.LightningModule, optimizer: Optimizer, name: str) -> None:
    """The optimizer changes parameters of the module and no others, by its `step`, and is a new one for every client."""
    if inspect.unwrap(type(optimizer).step) is inspect.unwrap(Optimizer.step):
        raise ConfigurationError(
            f"the optimizer {type(optimizer).__name__} of {name} has no step(), by which local training trains (it may fuse it "
            "with the backward pass); use another"
        )
    own = {id(parameter) for parameter in client.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = sum(id(parameter) not in own for parameter in held)
    if strangers:
        raise ConfigurationError(
            f"the optimizer of {name} holds {strangers} of {len(held)} tensors that are not the module's parameters, so that "
            "what it learns there would never be reported; make it of self.parameters()"
        )
    trainable = any(parameter.requires_grad for parameter in client.parameters())
    if trainable and not any(parameter.requires_grad for parameter in held):
        raise ConfigurationError(
            f"the optimizer of {name} holds none of its trainable parameters; make it of self.parameters()"
        )
    finite_settings(optimizer, f"the optimizer {type(optimizer).__name__} of {name}")
    kept = any(value is optimizer for part in client.modules() for value in vars(part).values())
    if kept and make_optimizer(client, name)[0] is optimizer:
        raise ConfigurationError(
            f"configure_optimizers of {name} returns one and the same optimizer every time, so that its momentum would pass "
            "from client to client; make a new one there"
        )


def check_scheduler(
    scheduler: LocalScheduler, n: int, local: LocalTraining, name: str, enough: str = "self.trainer.estimated_stepping_batches"
) -> None:
    """A OneCycleLR can take the steps of a client of n samples, the largest one; `enough` is where their number is known."""
    if not isinstance(scheduler.scheduler, OneCycleLR):
        return
    counts = [count for _, count in epoch_parts(n, local.epochs, local.batch_size)]
    steps = sum(count // scheduler.frequency for count in counts)
    steps = steps if scheduler.interval == "step" else len(counts) // scheduler.frequency
    if steps > scheduler.scheduler.total_steps:
        raise ConfigurationError(
            f"the scheduler OneCycleLR of {name} is made for {scheduler.scheduler.total_steps} steps, but the largest client, "
            f"of {n} samples, takes {steps} of them in a round; make it with total_steps={enough or steps}"
        )


def check_sparse_gradients(client: nn.Module, optimizer: Optimizer, local: LocalTraining, name: str) -> None:
    """Clipping and the optimizer can take the gradients of embeddings with `sparse=True`."""
    layers = [(place, part) for place, part in client.named_modules() if isinstance(part, (nn.Embedding, nn.EmbeddingBag))]
    sparse = [(place, part.weight) for place, part in layers if part.sparse and part.weight.requires_grad]
    if not sparse:
        return
    place, weight = sparse[0]
    remedy = f"leave out sparse=True of {place}"
    if local.gradient_clip_norm:
        raise ConfigurationError(
            f"{name} has sparse gradients, of {place}, which cannot be clipped; {remedy}, or set "
            f"{local.place}.gradient_clip_norm to 0"
        )
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(p is weight for p in held):
        return
    before, gradients = weight.detach().clone(), [p.grad for p in held]
    for parameter in held:
        parameter.grad = None
    place_of_one, zeros = torch.zeros(1, 1, dtype=torch.int64, device=weight.device), torch.zeros_like(weight[:1])
    weight.grad = torch.sparse_coo_tensor(place_of_one, zeros, weight.shape, check_invariants=True)
    try:
        optimizer.step()
    except Exception as error:
        raise ConfigurationError(
            f"the optimizer {type(optimizer).__name__} of {name} cannot take the sparse gradients of {place}: {error}; "
            f"{remedy}, or use SGD or SparseAdam"
        ) from error
    finally:
        with torch.no_grad():
            weight.copy_(before)
        for parameter, gradient in zip(held, gradients, strict=True):
            parameter.grad = gradient


def check_batch_norm(client: L.LightningModule, sizes: Tensor, local: LocalTraining, samples: Samples | None) -> None:
    """No client trains BatchNorm on a batch of one, unless a single sample has several values per channel, as pictures do."""
    least = int(sizes.min())
    if local.batch_size > 1 and least > 1:
        return
    names = [place for place, part in client.named_modules() if isinstance(part, _BatchNorm)]
    if not names or (samples is not None and not needs_more_than_one(client, samples)):
        return
    if least > 1:
        raise ConfigurationError(
            f"{local.place}.batch_size is {local.batch_size}, and BatchNorm ({names[0]}) cannot train on a single sample; set "
            "it to 2 or more, or use another norm"
        )
    raise ConfigurationError(
        f"client {int(sizes.argmin())} holds {least} sample, and BatchNorm cannot train on a single one; give every client at "
        "least two (min_samples of a Dirichlet partition), or use another norm"
    )


def needs_more_than_one(client: L.LightningModule, samples: Samples) -> bool:
    """Whether a single sample gives some BatchNorm one value per channel; also where that cannot be found out."""
    values: dict[nn.Module, int] = {}
    layers = [part for part in client.modules() if isinstance(part, _BatchNorm)]
    device = next(client.parameters()).device

    def watch(part: nn.Module, given: tuple[Any, ...]) -> None:
        values[part] = min(values.get(part, given[0].numel()), given[0].numel() // given[0].shape[1])

    hooks = [part.register_forward_pre_hook(watch) for part in layers]
    try:
        with undisturbed(client), torch.no_grad():
            client.eval()
            predict(client, move_data_to_device(samples.batch(torch.zeros(1, dtype=torch.int64)), device))
    except Exception:  # of the user's, which predicting before training shows
        return True
    finally:
        for hook in hooks:
            hook.remove()
    return len(values) < len(layers) or min(values.values()) < 2
