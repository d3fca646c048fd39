"""Load CIFAR-100: 50,000 training and 10,000 test images, 32x32 in colour, from `cifar-100-python`.

Labels are the 100 fine classes.
Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

from bench.core.contracts.dataset import Dataset
from bench.datasets.vision import VisionSet

_FILES = tuple(f"cifar-100-python/{name}" for name in ("meta", "train", "test"))
_SET = VisionSet(
    name="cifar100",
    kind="CIFAR100",
    files={"train": _FILES, "test": _FILES},
    classes=tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()  # noqa: SIM905
    ),
    archive="cifar-100-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
)

DATASET = Dataset(
    summary="CIFAR-100, 50,000 training and 10,000 test images, 32x32 in colour, 100 classes",
    source="Krizhevsky 2009",
    load=_SET.load,
    reads=_SET.list_files,
)
