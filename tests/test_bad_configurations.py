"""Two hundred mistakes, one a line: each ends in a readable message that names field and value, and leaves nothing behind."""

import os
import shlex
from pathlib import Path

import pytest

from fl_lightning.cli import main
from fl_lightning.configuration import FederatedCLI

ROOT = Path(__file__).parents[1]

BASE = """
seed_everything: 0
trainer:
  {accelerator: cpu, max_epochs: 2, logger: false, default_root_dir: run, callbacks: [{class_path: AggregationDiagnostics}]}
model:
  client: {class_path: MLP, init_args: {sizes: [45, 8, 2]}}
  aggregator: {class_path: Invariant, init_args: {tau: 0.6, alpha: 0.25}}
  attacks: [{class_path: ValueTrigger}]
  cohort: {clients_per_round: 5, malicious_fraction: 0.2}
data:
  class_path: Phishing
  init_args: {num_train: 600, num_test: 100, partition: {class_path: IID, init_args: {num_clients: 10}}}
"""

MOST_LINES, WIDTH = 12, 100

# What is given on top of the base, and what the message must name.
ARGUMENTS = r"""
--model.local.epoch 2 | epoch, epochs
--model.local.epochs 0 | epochs, 0
--model.local.epochs -1 | epochs, -1
--model.local.epochs .nan | epochs, nan
--model.local.epochs .inf | epochs, inf
--model.local.epochs 1e15 | epochs, 1000000000000000.0
--model.local.epochs many | model.local.epochs, a number, many
--model.local.epochs [1] | model.local.epochs, [1]
--model.local.epochs null | model.local.epochs, None
--model.local.epochs true | model.local.epochs
--model.local.batch_size 0 | batch_size, 0
--model.local.batch_size -8 | batch_size, -8
--model.local.batch_size 2.5 | model.local.batch_size, 2.5
--model.local.batch_size null | model.local.batch_size, None
--model.local.batchsize 8 | batchsize, batch_size
--model.local.precision 16 | model.local.precision, 16
--model.local.precision fp16 | model.local.precision, fp16
--model.local.gradient_clip_norm -1 | gradient_clip_norm, -1
--model.local.executor fast | model.local.executor, fast
--model.local.branches -1 | branches, -1
--model.local.lr 0.1 | model.local, lr
--model.local fast | model.local, fast
--model.cohort.clients_per_round 0 | clients_per_round, 0
--model.cohort.clients_per_round 11 | clients_per_round, 11, 10
--model.cohort.clients_per_round 1000000000 | clients_per_round, 1000000000
--model.cohort.clients_per_round many | model.cohort.clients_per_round, many
--model.cohort.clients_per_round null | model.cohort.clients_per_round, None
--model.cohort.client_per_rounds 3 | client_per_rounds, clients_per_round
--model.cohort.malicious_fraction 1 | malicious_fraction, 1
--model.cohort.malicious_fraction -0.1 | malicious_fraction, -0.1
--model.cohort.malicious_fraction .nan | malicious_fraction, nan
--model.cohort.malicious_fraction 20% | model.cohort.malicious_fraction, 20%
--model.cohort.participation all | model.cohort.participation, all, fixed_share
--model.cohort.participation single_shot | rounds, single_shot
--model.cohort.start_round -1 | start_round, -1
--model.cohort.every 3 | every, model.cohort.interval, interval: 3
--model.cohort.end_round 0 | end_round, 0, start_round
--model.cohort.start_round 5 --model.cohort.end_round 5 | end_round = 5, start_round = 5
--model.cohort.end_round soon | model.cohort.end_round, soon
--model.cohort.interval 0 | interval, 0
--model.cohort.interval -2 | interval, -2
--model.cohort.after gone | model.cohort.after, gone, benign, absent
--model.cohort.after absent | after, end_round
--model.cohort.after absent --model.cohort.end_round 1 --model.cohort.clients_per_round 9 | after = absent, 9 benign, leaves 8
--model.cohort.participation single_shot --model.cohort.rounds [0,3] --model.cohort.interval 2 | rounds = [3], interval = 2
--model.cohort.attackers 3 | attackers, fixed_frequency
--model.cohort.rounds [1] | rounds, [1], single_shot
--model.cohort.participation fixed_frequency --model.cohort.interval 0 | interval, 0
--model.cohort.participation fixed_frequency --model.cohort.attackers 6 | attackers, 6
--model.cohort.participation single_shot --model.cohort.rounds [0,1,2] | rounds, 3 attacks
--model.cohort.seed 3 | model.cohort, seed
--model.aggregator Invarient | model.aggregator, Invarient, Invariant
--model.aggregator nowhere.Rule | model.aggregator, nowhere
--model.aggregator MLP | model.aggregator, MLP
--model.aggregator 3 | model.aggregator, 3
--model.aggregator null | model.aggregator
--model.aggregator.tua 0.3 | model.aggregator, tua, tau
--model.aggregator.init_args.tau 2 | tau, 2
--model.aggregator.init_args.tau -0.1 | tau, -0.1
--model.aggregator.init_args.tau x | model.aggregator.tau, x
--model.aggregator.init_args.tau null | model.aggregator.tau, null
--model.aggregator.init_args.tau .nan | tau, nan
--model.aggregator.init_args.alpha 0.5 | alpha, 0.5
--model.aggregator.init_args.alpha 0.49 | alpha, 0.49
--model.aggregator.init_args.inclusive perhaps | model.aggregator.inclusive, perhaps
--model.aggregator Krum --model.aggregator.f 3 | model.aggregator, f
--model.aggregator TrimmedMean --model.aggregator.alpha -1 | alpha, -1
--model.aggregator TrimmedMean --model.aggregator.aplha 0.1 | aplha, alpha
--model.aggregator NormClipping --model.aggregator.max_norm -3 | max_norm, -3
--model.aggregator FLTrust | FLTrust, data.root
--model.aggregator WeakDP --model.aggregator.sigma -1 | WeakDP, sigma
--model.aggregator Bulyan | Bulyan
--model.agregator Median | agregator, aggregator
--model.client Net | model.client, Net
--model.client nowhere.Net | model.client, nowhere
--model.client torch.nn.Nothing | model.client, Nothing
--model.client Krum | model.client, Krum
--model.client.init_args.size [45,2] | model.client, size, sizes
--model.client.init_args.sizes [44,2] | 44
--model.client.init_args.sizes [45] | sizes, [45]
--model.client.init_args.sizes [45,-1,2] | sizes, -1
--model.client.init_args.sizes 45 | sizes, 45
--model.client.init_args.optimizer Sdg | optimizer, Sdg
--model.client.init_args.optimizer Adam --model.client.init_args.optimizer.init_args.lrr 1 | lrr, lr
--model.server_optimizer Sdg | model.server_optimizer, Sdg
--model.server_optimizer SGD --model.server_optimizer.lr -1 | server_optimizer, -1
--model.server_optimizer SGD --model.server_optimizer.lr x | model.server_optimizer.lr, x
--model.server_optimizer SGD --model.server_optimizer.mommentum 1 | mommentum, momentum
--model.buffers sum | model.buffers, sum
--model.bucket_bytes 0 | bucket_bytes, 0
--model.bucket_bytes 1.5 | model.bucket_bytes, 1.5
--model.compile_rules yes | model.compile_rules
--model.seed 3 | model.seed, seed_everything
--model.attacks+ ValueTriger | model.attacks, ValueTriger, ValueTrigger
--model.attacks.colum 3 | model.attacks, colum, column
--model.attacks.column 45 | column, 45
--model.attacks.column x | column, x
--model.attacks.poison_fraction 0 | poison_fraction, 0
--model.attacks.poison_fraction 2 | poison_fraction, 2
--model.attacks.target_label 2 | target_label, 2
--model.attacks.source_label 7 | source_label, 7
--model.attacks.value big | model.attacks.value, big
--model.attacks+ PixelTrigger | PixelTrigger
--model.attacks+ DBA | DBA
--model.attacks ValueTrigger | model.attacks, list, ValueTrigger
--model.attacks+ EdgeCase | model.attacks, pool
--model.attacks+ Median | model.attacks, Median
--model.attacks 3 | model.attacks, 3
--model.atacks [] | atacks, attacks
--data Fishing | data, Fishing, Phishing
--data nowhere.Data | data, nowhere
--data Median | data, Median
--data.init_args.num_train 1 | num_train, 1
--data.init_args.num_train -5 | num_train, -5
--data.init_args.num_train 1000000000000 | num_train, 1000000000000
--data.init_args.num_train x | data.num_train, x
--data.init_args.num_test 0 | num_test, 0
--data.init_args.num_tests 5 | num_tests, num_test
--data.init_args.phishing_fraction 0 | phishing_fraction, 0
--data.init_args.phishing_fraction 1.5 | phishing_fraction, 1.5
--data.init_args.separation .nan | separation, nan
--data.init_args.separation -1 | separation, -1
--data.init_args.rare_fraction 0 | rare_fraction, 0
--data.init_args.rare_max 2 | rare_max, 2
--data.init_args.eval_batch_size 0 | eval_batch_size, 0
--data.init_args.eval_batch_size null | data.eval_batch_size, null
--data.init_args.seed 4 | seed, 4, seed_everything
--data.seed 4 | seed, 4, seed_everything
--data.init_args.partition Diriclet | data.partition, Diriclet, Dirichlet
--data.init_args.partition.init_args.num_clients 0 | num_clients, 0
--data.init_args.partition.init_args.num_clients -3 | num_clients, -3
--data.init_args.partition.init_args.num_clients 601 | data.partition, 601
--data.init_args.partition.init_args.num_clients 1000000000 | num_clients, 1,000,000,000
--data.init_args.partition.init_args.num_clients x | data.partition.num_clients, x
--data.init_args.partition.init_args.num_client 3 | num_client, num_clients
--data.init_args.partition Dirichlet --data.init_args.partition.alpha 0 | alpha, 0
--data.init_args.partition Dirichlet --data.init_args.partition.alpha .nan | alpha, nan
--data.init_args.partition Dirichlet --data.init_args.partition.alfa 1 | alfa, alpha
--data.init_args.partition FullCopies --data.init_args.partition.num_clients 99999999999 | num_clients, 99,999,999,999
--data.init_args.partition ByKey | ByKey
--data.init_args.root '{samples: 0}' | samples, 0
--data.init_args.root '{samples: 601}' | samples, 601
--data.init_args.root '{sample: 10}' | sample
--data.path x | data, path
--data CIFAR10 --data.init_args.path gone | gone
--checkpoint.every_n_rounds 0 | every_n_rounds, 0
--checkpoint.every_n_rounds x | checkpoint.every_n_rounds, x
--checkpoint.every 2 | every, every_n_rounds
--seed_everything true | seed_everything, True
--seed_everything -3 | seed_everything, -3
--seed_everything 4294967296 | seed_everything, 4294967296
--seed_everything x | seed_everything, x
--seed_everything null | seed_everything, None
--seed 3 | seed
--trainer.max_epoch 3 | max_epoch, max_epochs
--trainer.max_epochs 0 | max_epochs, 0
--trainer.max_epochs -1 | max_epochs, -1
--trainer.max_epochs -5 | max_epochs, -5
--trainer.max_epochs 1.5 | trainer.max_epochs, 1.5
--trainer.max_epochs 1e15 | trainer.max_epochs, 1e15
--trainer.max_epochs 1000000000000000 | max_epochs, 1000000000000000
--trainer.max_steps 0 | max_steps, 0
--trainer.min_epochs 5 | min_epochs, 5
--trainer.min_steps 5 | min_steps, 5
--trainer.max_time soon | soon
--trainer.devices 0 | trainer, 0
--trainer.devices -3 | devices
--trainer.devices two | devices
--trainer.devices 5000 | devices, 5000
--trainer.num_nodes 0 | num_nodes, 0
--trainer.accelerator gppu | gppu
--trainer.strategy federatedd | federatedd
--trainer.precision bf16-mixed | precision, bf16-mixed
--trainer.precision 64 | precision, 64-true
--trainer.overfit_batches 1 | overfit_batches, 1
--trainer.overfit_batches 0.5 | overfit_batches, 0.5
--trainer.limit_train_batches 0 | limit_train_batches, 0
--trainer.limit_train_batches 0.5 | limit_train_batches, 0.5
--trainer.limit_train_batches 3 | limit_train_batches, 3
--trainer.limit_val_batches 1 | limit_val_batches, 1
--trainer.limit_val_batches 0.5 | limit_val_batches, 0.5
--trainer.limit_test_batches 2 | limit_test_batches, 2
--trainer.accumulate_grad_batches 2 | accumulate_grad_batches, 2
--trainer.gradient_clip_val 1 | gradient_clip_val, 1
--trainer.gradient_clip_algorithm value | gradient_clip_algorithm, value
--trainer.val_check_interval 2 | val_check_interval, 2
--trainer.val_check_interval 0.5 | val_check_interval, 0.5
--trainer.val_check_interval 00:00:00:01 | val_check_interval, 1 s
--trainer.check_val_every_n_epoch 0 | check_val_every_n_epoch, 0
--trainer.check_val_every_n_epoch -2 | check_val_every_n_epoch, -2
--trainer.check_val_every_n_epoch null | val_check_interval, 1.0
--trainer.num_sanity_val_steps -5 | num_sanity_val_steps, -5
--trainer.log_every_n_steps -1 | log_every_n_steps, -1
--trainer.sync_batchnorm true | sync_batchnorm, True
--trainer.model_registry mine | model_registry, mine
--trainer.profiler fast | profiler
--trainer.reload_dataloaders_every_n_epochs -1 | reload_dataloaders_every_n_epochs, -1
--trainer.plugins AsyncCheckpointIO | plugins, AsyncCheckpointIO
--trainer.enable_checkpointing 3 | trainer.enable_checkpointing, 3
--trainer.default_root_dir /dev/null/run | default_root_dir, /dev/null
--trainer.default_root_dir a::b | default_root_dir, a::b
--trainer.default_root_dir s3://bucket/run | default_root_dir, s3://bucket/run
--trainer.logger WandbLoger | trainer.logger, WandbLoger, WandbLogger
--trainer.logger TensorBoardLogger | trainer.logger, save_dir
--trainer.callbacks+ RunRecord | trainer.callbacks, RunRecord
--trainer.callbacks+ LastCheckpoint | trainer.callbacks, LastCheckpoint
--trainer.callbacks+ AggregationDiagnostics | trainer.callbacks, AggregationDiagnostics, 2 times
--trainer.callbacks+ EarlyStoping | trainer.callbacks, EarlyStoping, EarlyStopping
--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val_loss | monitor, val_loss, val/acc
--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/ars | monitor, val/ars, val/asr
--trainer.callbacks ModelCheckpoint --trainer.callbacks.monitor loss | monitor, loss, client/
--trainer.callbacks ModelCheckpoint --trainer.callbacks.train_time_interval 0:00:10 | train_time_interval
--trainer.callbacks BatchSizeFinder | trainer.callbacks, BatchSizeFinder
--trainer.callbacks SpikeDetection | trainer.callbacks, SpikeDetection
--trainer.callbacks EMAWeightAveraging | trainer.callbacks, EMAWeightAveraging
--ckpt_path nothing.ckpt | ckpt_path, nothing.ckpt
--ckpt_path best | ckpt_path, best
--ckpt_path hpc | ckpt_path, hpc
--ckpt_path . | ckpt_path
--config gone.yaml | config, gone.yaml
--config . | config
--config 3 | config, 3
--config 'model: [1' | config, YAML
--config 'model: {}\nmodel: {}' | config, model, twice
--config 'model: {local: {epochs: 1, epochs: 2}}' | config, epochs, twice
--config 'model: {local: {epochs: null}}' | model.local.epochs, null
--config 'model: {aggregator: {class_path: Invariant, init_args: {tau: null}}}' | model.aggregator.tau, null
--config 'data: {class_path: Phishing, init_args: {num_train: null}}' | data.num_train, null
--config 'model: {local: null}' | model.local, null
--config 'trainer: null' | trainer, null
--config 'model: &a {client: *a}' | config, alias
--config 'model: {seed: 5}' | model.seed, 5, seed_everything
--config 'traner: {max_epochs: 3}' | traner, trainer
--config 'model: {aggregator: {class_path: Invariant, tau: 1}}' | model.aggregator, init_args
--with Invariant.tua=0.3 | model.aggregator, tua, tau
--with Invarient.tau=0.3 | --with, Invarient, Invariant
--with Invariant.tau=[ | --with, Invariant.tau
--with tau | --with, tau
--config 'model: 3' | model, mapping, 3
--config 'model: {local: [1, 2]}' | model.local, mapping, [1, 2]
--config 'model: {local: {3: 4}}' | model.local, 3, name
--config 'model: {cohort: 3}' | model.cohort, mapping, 3
--config 'model: {local: {"": 4}}' | model.local, ''
--config 'model: {local: {[1]: 4}}' | model.local, key, line 1
--config 'trainer: 3' | trainer, mapping, 3
--config 'trainer: {max_epoch: {}}' | trainer, max_epoch, max_epochs
--config 'checkpoint: [3]' | checkpoint, mapping, [3]
--config '3: 4' | 3, name
--config 'null: 4' | null, name
--config 'modle: {}' | modle, model
--config 'modle: {local: {}}' | modle, model
--config 'modle: []' | modle, model
--config 'modle: null' | modle, model
--config 'model: {locl: {}}' | model, locl, local
--config 'model: {local: {epoch: {}}}' | model.local, epoch, epochs
--config 'model: {aggregator: {class_path: Invariant, init_args: {tua: {}}}}' | model.aggregator, tua, tau
--config 'model: {aggregator: {class_path: Invariant, init_args: {3: 4}}}' | name, 3
--config 'model: {aggregator: {Median: {}}}' | model.aggregator, Median
--config 'model: {aggregator: {Median: {a: 1}}}' | model.aggregator, Median
--config 'model: {aggregator: 3}' | model.aggregator, Aggregator, class_path, 3
--config 'model: {aggregator: [Median]}' | model.aggregator, Aggregator, Median
--config 'model: {aggregator: {class_path: 7}}' | model.aggregator.class_path, 7
--config 'model: {aggregator: {class_path: null}}' | model.aggregator.class_path, null
--config 'model: {aggregator: {class_path: Invariant, init_arg: {}}}' | model.aggregator, init_args, init_arg
--config 'model: {aggregator: {class_path: Invariant, init_args: [100]}}' | model.aggregator.init_args, [100]
--config 'model: {aggregator: {class_path: Invariant, dict_kwargs: {a: 3}}}' | model.aggregator.dict_kwargs, a, tau
--config 'model: {attacks: [null]}' | model.attacks, None, class_path
--config 'model: {attacks: [{}]}' | model.attacks, empty
--config 'model: {attacks: {class_path: ValueTrigger}}' | model.attacks, list
--config 'model: {attacks: [{class_path: ValueTrigger, init_args: {colum: {}}}]}' | model.attacks, colum, column
--config 'model: {client: {class_path: MLP, init_args: {optimizer: 3}}}' | model.client.optimizer, Optimizer, 3
--config 'model: {client: {class_path: MLP, init_args: {optimizer: {class_path: SGD, init_args: 3}}}}' | optimizer.init_args, 3
--config 'model: {client: null}' | model.client, given
--config 'data: {class_path: Phishing, init_args: null}' | data.init_args, null
--config 'data: {class_path: Phishing, init_args: [100]}' | data.init_args, [100]
--config 'data: {class_path: Phishing, dict_kwargs: {a: 3}}' | data.dict_kwargs, a, num_train
--config 'data: {class_path: 7}' | data.class_path, 7
--config 'data: [1]' | data, [1]
--config 'data: null' | data, given
--model.aggregator '{class_path: 7}' | model.aggregator.class_path, 7
--model.local 3 | model.local, 3
--model.attacks '[3]' | model.attacks, 3
--model.aggregator fl_lightning.aggregators.base.Aggregator | model.aggregator, Aggregator, Median
--model.attacks+ Attack | model.attacks, Attack, DBA
--data FederatedDataModule | data, FederatedDataModule, Phishing
--data.init_args.partition Partition | data.partition, Partition
--model.client lightning.LightningModule | model.client, LightningModule, MLP
--model.server_optimizer SGD --model.server_optimizer.lr 1 --model.server_scheduler LRScheduler | server_scheduler, StepLR
--trainer.callbacks+ Callback | trainer.callbacks, Callback, FlipRates
--trainer.callbacks BackdoorLifespan | BackdoorLifespan, model.cohort.end_round
--trainer.callbacks BackdoorLifespan --model.attacks '[SignFlip]' --model.cohort.end_round 1 | BackdoorLifespan, model.attacks
--trainer.callbacks BackdoorLifespan --trainer.callbacks.kappa 1 | BackdoorLifespan.kappa, 1
--trainer.callbacks BackdoorLifespan --trainer.callbacks.horizons [0] | BackdoorLifespan.horizons, at least 1, 0
--trainer.callbacks BackdoorLifespan --trainer.callbacks.clean_asr -0.5 | BackdoorLifespan.clean_asr, -0.5
--trainer.callbacks BackdoorLifespan --trainer.callbacks.margin .nan | callbacks.margin, nan
--trainer.callbacks '[{class_path: FlipRates}, {class_path: FlipRates}]' | trainer.callbacks, FlipRates, 2 times
--trainer.callbacks ModelCheckpoint --trainer.callbacks.save_top_k -2 | ModelCheckpoint, save_top_k, -2
--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/acc --trainer.callbacks.mode up | EarlyStopping, mode, up
--trainer.callbacks Timer --trainer.callbacks.duration soon | Timer, duration, soon
--trainer.callbacks '[null]' | trainer.callbacks, Callback, None
--trainer.logger '[3]' | trainer.logger, Logger, 3
--config 'model: {local: {batch_size: 0100}}' | line 1, model.local.batch_size, 0100, 64, 100
--config 'model: {local: {batch_size: 1:40}}' | line 1, model.local.batch_size, 1:40, 100
--config 'model: {local: {batch_size: 1_0}}' | line 1, model.local.batch_size, 1_0
--config 'model: {local: {batch_size: 0o17}}' | line 1, model.local.batch_size, 0o17, 15
--config 'model: {local: {batch_size: 0b11}}' | line 1, model.local.batch_size, 0b11, 3
--config 'model: {local: {epochs: +.5}}' | line 1, model.local.epochs, +.5
--config 'trainer:\n  logger: off' | line 2, trainer.logger, off, false
--config 'trainer: {default_root_dir: on}' | line 1, trainer.default_root_dir, on
--model.local.batch_size 1:40 | model.local.batch_size, 1:40, 100
--model.local.batch_size 1_0 | model.local.batch_size, 1_0
--model.client.sizes '[055,8,2]' | model.client.sizes, 055, 45, 55
--trainer.logger no | trainer.logger, no
--with Phishing.num_train=0100 | --with, Phishing.num_train, 0100, 64
--with Invariant.tau=yes | --with, Invariant.tau, yes
--checkpoint.every_n_rounds 5 --trainer.enable_checkpointing false | checkpoint.every_n_rounds, 5, enable_checkpointing
--seed_everything 1.5 | seed_everything, whole number, 1.5
--seed_everything 18446744073709551616 | seed_everything, 2**32, 18446744073709551616
--seed_everything 3 --model.seed 3 | model.seed, 3, seed_everything
--seed_everything 3 --config 'model: {seed: 4}' | model.seed, 4, seed_everything, which is 3
--config 'model.seed: 4' | model.seed, 4, seed_everything
--model.client.optimizer SGD --model.client.optimizer.lr .nan | model.client.optimizer.lr, nan
--model.client.optimizer SGD --model.client.optimizer.lr -1 | learning rate, -1
--model.client.optimizer SGD --model.client.optimizer.weight_decay .inf | model.client.optimizer.weight_decay, inf
--model.client.optimizer Adam --model.client.optimizer.betas [.nan,0.9] | model.client.optimizer.betas, nan
--model.server_optimizer SGD --model.server_optimizer.lr .inf | model.server_optimizer.lr, inf
--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/acc --trainer.callbacks.min_delta .nan | min_delta, nan
--trainer.callbacks EarlyStopping --trainer.callbacks.monito val/acc | trainer.callbacks, did you mean monitor
--trainer.logger CSVLogger --trainer.logger.save_di x | trainer.logger, did you mean save_dir
--trainer.profiler SimpleProfiler --trainer.profiler.dirpat y | trainer.profiler, did you mean dirpath
--trainer.plugins MixedPrecision --trainer.plugins.devic y | trainer.plugins, did you mean device
--trainer.strategy FederatedStrategy --trainer.strategy.timeout_second 3 | trainer.strategy, did you mean timeout_seconds
extra | extra
--model | model
--no_such 3 | no_such
"""

CASES = [tuple(part.strip() for part in line.split(" | ")) for line in ARGUMENTS.strip().splitlines()]

parsers = {}


@pytest.fixture(autouse=True)
def one_parser(monkeypatch):
    """Making the parser of a command takes most of the time that a mistake takes; it holds nothing of what it parsed."""
    make = FederatedCLI.setup_parser

    def kept(cli, *args):
        command = tuple(cli.subcommands())
        if command not in parsers:
            before = set(vars(cli))
            make(cli, *args)
            parsers[command] = {name: value for name, value in vars(cli).items() if name not in before}
        vars(cli).update(parsers[command])

    monkeypatch.setattr(FederatedCLI, "setup_parser", kept)


def test_there_are_two_hundred():
    assert len(CASES) >= 200
    assert len({arguments for arguments, _ in CASES}) == len(CASES)


@pytest.mark.parametrize(("arguments", "named"), CASES, ids=[arguments for arguments, _ in CASES])
def test_it_ends_in_a_readable_message_and_leaves_nothing(tmp_path, capfd, arguments, named):
    (tmp_path / "base.yaml").write_text(BASE)
    given = [word.replace("\\n", "\n") for word in shlex.split(arguments)]
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", "base.yaml", *given])
    assert left.value.code == 2
    shown = capfd.readouterr()
    message = shown.err[shown.err.index("error: ") :]
    assert sum(1 + len(line) // WIDTH for line in shown.err.splitlines()) <= MOST_LINES, shown.err
    assert "Traceback" not in shown.err
    assert all(word in message for word in named.split(", ")), message
    assert os.listdir(tmp_path) == ["base.yaml"]
