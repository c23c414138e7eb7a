"""Tasks, one file each, and how their samples are dealt out to clients.

It may import `modules`, `files`, `checked`, `seeding` and `errors`. Read `module.py` first: the data of a
federation from a data set to index sets, then `partition.py`.
"""

from fl_lightning.data.any_table import Table
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.cifar10 import CIFAR10
from fl_lightning.data.cifar100 import CIFAR100
from fl_lightning.data.digits import Digits, RotatedDigits
from fl_lightning.data.director_tweets import DirectorTweets
from fl_lightning.data.edge_pool import EdgePool
from fl_lightning.data.femnist import FEMNIST
from fl_lightning.data.few_classes import ClassesPerClient, Shards
from fl_lightning.data.from_flower import FromFlower
from fl_lightning.data.glove import GloVe
from fl_lightning.data.hugging_face_instructions import HuggingFaceInstructions
from fl_lightning.data.hugging_face_text import HuggingFaceText
from fl_lightning.data.joined import join
from fl_lightning.data.label_skew import DirichletOverClasses, DirichletOverClients
from fl_lightning.data.map_samples import MapSamples
from fl_lightning.data.mnist import EMNIST, MNIST, FashionMNIST
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.next_word import NextWord
from fl_lightning.data.outcomes import Classes, Outcome, Tokens
from fl_lightning.data.pachinko import Pachinko
from fl_lightning.data.partition import IID, ByKey, Dirichlet, FullCopies, PackedKeys, Partition
from fl_lightning.data.phishing import Phishing
from fl_lightning.data.phishing_table import PhishingTable
from fl_lightning.data.probe import Noise
from fl_lightning.data.quantity_skew import DirichletSizes, LogNormalSizes, PowerLawSizes
from fl_lightning.data.root import RootSet
from fl_lightning.data.shakespeare import Shakespeare
from fl_lightning.data.southwest import Southwest
from fl_lightning.data.tiny_imagenet import TinyImageNet
from fl_lightning.data.tokenizer import Tokenizer
from fl_lightning.data.twitter import Twitter
from fl_lightning.data.vectors import MultiLabel, Regression
from fl_lightning.data.vocabulary import Vocabulary

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "EMNIST",
    "FEMNIST",
    "IID",
    "MNIST",
    "ByKey",
    "Classes",
    "ClassesPerClient",
    "Digits",
    "DirectorTweets",
    "Dirichlet",
    "DirichletOverClasses",
    "DirichletOverClients",
    "DirichletSizes",
    "EdgePool",
    "FashionMNIST",
    "FederatedDataModule",
    "FromFlower",
    "FullCopies",
    "GloVe",
    "HuggingFaceInstructions",
    "HuggingFaceText",
    "LogNormalSizes",
    "MapSamples",
    "MultiLabel",
    "NextWord",
    "Noise",
    "Outcome",
    "Pachinko",
    "PackedKeys",
    "Partition",
    "Phishing",
    "PhishingTable",
    "PowerLawSizes",
    "Regression",
    "RootSet",
    "RotatedDigits",
    "Samples",
    "Shakespeare",
    "Shards",
    "Southwest",
    "Table",
    "Task",
    "TensorSamples",
    "TinyImageNet",
    "Tokenizer",
    "Tokens",
    "Twitter",
    "Vocabulary",
    "join",
]
