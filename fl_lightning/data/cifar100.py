"""CIFAR-100: 60,000 colour images of 32 x 32 pixels in 100 classes, which are five each of 20 coarse ones.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto, 2009,
https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf. Dealt out to 500 clients by `Pachinko` it is Fed-CIFAR-100:
S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan, "Adaptive Federated Optimization",
ICLR 2021, https://arxiv.org/abs/2003.00295.
"""

from __future__ import annotations

from fl_lightning.data.colour_pictures import ColourPictures
from fl_lightning.data.standardize import Standardize


class CIFAR100(ColourPictures):
    """CIFAR-100 with its fine classes, model inputs (b, 3, 32, 32) float32, normalised by channel, and coarse classes as keys.

    The keys make it the data for `Pachinko`; with `ByKey` each of the 20 coarse classes is a client. Fed-CIFAR-100 deals the
    test images out as well, to 100 clients of 100; accuracy over these clients is that over all images together, which is
    measured here.

    Args:
        partition: how training samples are dealt out to clients.
        path: a folder that holds `train.parquet` and `test.parquet`, or a copy of the Hub repository with
            `cifar100/train-*.parquet` and `cifar100/test-*.parquet`; columns `img`, `fine_label` and `coarse_label`. None
            fetches "uoft-cs/cifar100" from the Hugging Face Hub, once per machine.
        augment: whether training images are randomly cropped, after padding by 4 pixels, and flipped.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if the files are not there or damaged, or the Hub cannot be reached.

    Differs from the paper, which crops to 24 x 24 pixels and standardises each image by its own mean and deviation.
    """

    class_names = (
        *("apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle"),
        *("bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle"),
        *("chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur"),
        *("dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard"),
        *("lamp", "lawn mower", "leopard", "lion", "lizard", "lobster", "man", "maple tree", "motorcycle", "mountain"),
        *("mouse", "mushroom", "oak tree", "orange", "orchid", "otter", "palm tree", "pear", "pickup truck", "pine tree"),
        *("plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket"),
        *("rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider"),
        *("squirrel", "streetcar", "sunflower", "sweet pepper", "table", "tank", "telephone", "television", "tiger", "tractor"),
        *("train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow tree", "wolf", "woman", "worm"),
    )
    hub_name = "uoft-cs/cifar100"
    subfolder = "cifar100"
    columns = ("img", "fine_label", "coarse_label")
    shape = (3, 32, 32)
    num_classes = 100
    standardize = Standardize((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
