"""What classes are called."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

# Of ImageNet's 1,000 wnids in their order (ILSVRC2012; the same in torchvision and timm).
_IMAGENET_WNIDS = "dfa002289ad326f955bcf45eec6f342c"


def of_classes(stored: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Class names to show: in words where they are known, else as the dataset has them.

    Args:
        stored: the dataset's, in label order.
        words: what some of them mean, synonyms with commas between, of which the first is shown; all,
            and the name itself, where that would be another class's too. ImageNet's 1,000 are known.
    """
    digest = hashlib.blake2b("\n".join(stored).encode(errors="replace"), digest_size=16).hexdigest()
    if digest == _IMAGENET_WNIDS:
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        return list(_IMAGENET_CATEGORIES)
    short = [words[name].partition(",")[0] if name in words else name for name in stored]
    times = Counter(short)
    return [
        f"{words[name]} ({name})" if name in words and times[shown] > 1 else shown
        for name, shown in zip(stored, short, strict=True)
    ]


def positions(known: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where the classes of one dataset stand among those of another, which has them all.

    Args:
        known: names, each once, in label order.
        wanted: the names to look for. Where they are the numbers from 0 up to as many as are known, as
            the folders of ImageNet-V2, they count the known names in sorted order.

    Raises:
        KeyError: the first name that is not known.
    """
    place = {name: number for number, name in enumerate(known)}
    numbered = {str(number): place[name] for number, name in enumerate(sorted(known))}
    if numbered.keys() == set(wanted) and numbered.keys() != place.keys():
        place = numbered
    return [place[name] for name in wanted]
