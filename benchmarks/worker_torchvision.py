"""The torchvision side of compare_torchvision.py; runs in an environment with torch and torchvision."""

import contextlib
import functools

import torch
import work
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d


def build():
    """`maskrcnn_resnet50_fpn` as it is with pretrained weights, but with random ones.

    The builder itself swaps in trainable batch normalisation when it is given no weights, hence the parts.
    """
    backbone = _resnet_fpn_extractor(resnet50(weights=None, norm_layer=FrozenBatchNorm2d), trainable_layers=3)
    model = MaskRCNN(
        backbone,
        num_classes=work.CLASSES + 1,
        rpn_pre_nms_top_n_train=2000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_train=work.PROPOSALS,
        rpn_post_nms_top_n_test=work.PROPOSALS,
        box_detections_per_img=work.DETECTIONS,
        box_batch_size_per_image=work.REGIONS,
        box_positive_fraction=work.FOREGROUND_FRACTION,
        box_fg_iou_thresh=work.FOREGROUND_IOU,
        box_bg_iou_thresh=work.FOREGROUND_IOU,
    )
    # The image has its size already, and masks stay in their boxes: neither side resizes or pastes.
    model.transform.resize = lambda image, target: (image, target)
    model.transform.postprocess = lambda result, *sizes: result
    rpn, box = model.rpn.head.bbox_pred, model.roi_heads.box_predictor
    for parameter in (rpn.weight, box.bbox_pred.weight, box.bbox_pred.bias, box.cls_score.bias):
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        rpn.bias.copy_(torch.tensor(work.BOX_DELTAS).repeat(len(rpn.bias) // 4))
    return model


@contextlib.contextmanager
def recorded(module, seen):
    """Within, `seen` collects the output of each call of `module`."""
    hook = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield
    finally:
        hook.remove()


def prepare_inference(model, images, autocast):
    """One forward pass without gradients, its threshold set so that `work.CANDIDATES` scores pass."""
    model.eval()

    @torch.inference_mode()
    def iteration():
        with autocast():
            return model(images)

    predictor, seen = model.roi_heads.box_predictor, []
    with recorded(predictor, seen):
        iteration()
        with torch.no_grad():
            predictor.cls_score.weight /= seen[-1][0].float().std()
        iteration()
    scores = torch.softmax(seen[-1][0].float(), -1)[:, 1:]
    model.roi_heads.score_thresh = work.threshold(scores.numpy())
    (result,) = iteration()
    facts = {"proposals": len(scores), "detections": len(result["masks"])}
    return iteration, facts


def prepare_train(model, images, targets, autocast):
    """Forward, losses, backward, SGD step of rate 0: the work without the drift."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)

    def iteration():
        with autocast():
            loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    regions, masks = [], []
    with (
        recorded(model.roi_heads.box_predictor, regions),
        recorded(model.roi_heads.mask_predictor, masks),
    ):
        loss = iteration()
    if loss != loss:
        raise RuntimeError("The loss is not a number.")
    facts = {
        "regions": len(regions[0][0]),
        "foreground": len(masks[0]),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
    }
    return iteration, facts


def main():
    """Builds the model and serves the driver."""
    given = work.arguments()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    autocast = contextlib.nullcontext
    if given.precision == "bfloat16":
        autocast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    pixels = torch.from_numpy(work.image(given.height, given.width)).permute(2, 0, 1).contiguous()
    images = [pixels.float() / 255]
    boxes, classes = work.objects(given.height, given.width)
    masks = torch.zeros(len(boxes), given.height, given.width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
        mask[y1:y2, x1:x2] = 1
    labels = torch.from_numpy(classes).long() + 1
    targets = [{"boxes": torch.from_numpy(boxes), "labels": labels, "masks": masks}]
    model = build()

    def prepare(command):
        if command == "inference":
            return prepare_inference(model, images, autocast)
        return prepare_train(model, images, targets, autocast)

    work.serve(prepare)


if __name__ == "__main__":
    main()
