"""What classes are called."""

import hashlib
from collections.abc import Sequence

# Of ImageNet's 1,000 wnids in their order (ILSVRC2012; the same in torchvision and timm).
_IMAGENET_WNIDS = "dfa002289ad326f955bcf45eec6f342c"


def of_classes(stored: Sequence[str]) -> list[str]:
    """Class names to show: ImageNet's in words, all others as the dataset has them.

    Args:
        stored: the dataset's, in label order.
    """
    digest = hashlib.blake2b("\n".join(stored).encode(errors="replace"), digest_size=16).hexdigest()
    if digest == _IMAGENET_WNIDS:
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        return list(_IMAGENET_CATEGORIES)
    return list(stored)
