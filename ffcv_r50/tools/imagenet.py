"""How large ImageNet is (ILSVRC2012): what programs assume where no dataset is named."""

TRAIN_IMAGES = 1_281_167
VAL_IMAGES = 50_000
CLASSES = 1000
