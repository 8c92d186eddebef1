import torch
from torchvision.models.detection._utils import BoxCoder

from detector.boxes import clip, decode, encode


def random_boxes(*shape: int) -> torch.Tensor:
    corner = torch.rand(*shape, 2) * 50
    return torch.cat((corner, corner + torch.rand(*shape, 2) * 40 + 1), dim=-1)


def test_decode_inverts_encode_at_each_stage() -> None:
    boxes, reference = random_boxes(3, 20), random_boxes(3, 20)
    for std in ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (1 / 30, 1 / 30, 1 / 15, 1 / 15)):
        deltas = encode(reference, boxes, torch.tensor(std))
        torch.testing.assert_close(decode(deltas, boxes, torch.tensor(std)), reference, rtol=1e-4, atol=1e-3)


def test_equal_to_torchvision_with_reciprocal_weights() -> None:
    boxes, reference, coder = random_boxes(30), random_boxes(30), BoxCoder((10.0, 10.0, 5.0, 5.0))
    std = torch.tensor((0.1, 0.1, 0.2, 0.2))
    deltas = encode(reference, boxes, std)
    torch.testing.assert_close(deltas, coder.encode_single(reference, boxes), rtol=1e-4, atol=1e-4)
    wild = deltas * 20
    torch.testing.assert_close(decode(wild, boxes, std), coder.decode_single(wild, boxes), rtol=1e-4, atol=1e-2)


def test_degenerate_boxes_give_finite_deltas() -> None:
    assert encode(random_boxes(4), torch.zeros(4, 4)).isfinite().all()
    assert encode(torch.zeros(4, 4), random_boxes(4)).isfinite().all()


def test_clip_uses_each_image_s_own_size() -> None:
    boxes = torch.tensor([[[-5.0, -5.0, 100.0, 100.0]], [[-5.0, -5.0, 100.0, 100.0]]])
    clipped = clip(boxes, torch.tensor([[10, 20], [30, 40]]))
    assert clipped.squeeze(1).tolist() == [[0, 0, 20, 10], [0, 0, 40, 30]]
