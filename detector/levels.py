"""What the levels P3..P7 of a pyramid are for an image."""

from detector.architecture import LEVELS

Size = tuple[int, int]  # height and width


def padding_multiple(base_stride: int) -> int:
    """What the sides of images are padded to a multiple of: the stride of P5. P6 and P7 may be of odd size."""
    return 4 * base_stride


def level_sizes(image_hw: Size, base_stride: int) -> list[Size]:
    """The maps of P3..P7 for an image, once it is padded to whole cells of P5; odd sizes round up."""
    multiple = padding_multiple(base_stride)
    height, width = (-(-side // multiple) * multiple for side in image_hw)
    return [(-(-height // stride), -(-width // stride)) for stride in (base_stride << i for i in range(len(LEVELS)))]
