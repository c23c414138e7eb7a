"""Client networks, one file each.

It may import `modules`, `checked` and `errors`. Read `base.py` first: what all of them share is a loss and an optimizer.
"""

from fl_lightning.models.base import Classifier
from fl_lightning.models.cnn import CNN
from fl_lightning.models.dropout_cnn import DropoutCNN
from fl_lightning.models.hugging_face import HuggingFaceCausalLM, HuggingFaceClassifier
from fl_lightning.models.lenet5 import LeNet5
from fl_lightning.models.lora import LoRA
from fl_lightning.models.lstm import LSTM
from fl_lightning.models.mlp import MLP
from fl_lightning.models.resnet import ResNet18, ResNet20, ResNet34
from fl_lightning.models.token_lstm import CharLSTM, WordLSTM
from fl_lightning.models.vgg import VGG11
from fl_lightning.models.vit import ViT
from fl_lightning.modules.frozen_base import FrozenBase

__all__ = [
    "CNN",
    "LSTM",
    "MLP",
    "VGG11",
    "CharLSTM",
    "Classifier",
    "DropoutCNN",
    "FrozenBase",
    "HuggingFaceCausalLM",
    "HuggingFaceClassifier",
    "LeNet5",
    "LoRA",
    "ResNet18",
    "ResNet20",
    "ResNet34",
    "ViT",
    "WordLSTM",
]
