"""Client networks, one file each.

It imports `checked` and `errors` alone. Read `base.py` first: what all of them share is a loss and an optimizer.
"""

from fl_lightning.models.base import Classifier
from fl_lightning.models.cnn import CNN
from fl_lightning.models.dropout_cnn import DropoutCNN
from fl_lightning.models.lenet5 import LeNet5
from fl_lightning.models.lstm import LSTM
from fl_lightning.models.mlp import MLP
from fl_lightning.models.resnet import ResNet18, ResNet20, ResNet34
from fl_lightning.models.vgg import VGG11
from fl_lightning.models.vit import ViT

__all__ = [
    "CNN",
    "LSTM",
    "MLP",
    "VGG11",
    "Classifier",
    "DropoutCNN",
    "LeNet5",
    "ResNet18",
    "ResNet20",
    "ResNet34",
    "ViT",
]
