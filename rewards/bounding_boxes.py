"""The reward of a detection or grounding response: overlap of its boxes with the gold ones.

A box is {"bbox_2d": [x1, y1, x2, y2], "label": "..."}, in thousandths of the image, in a list.

    reward = 0.7 * overlap + 0.3 * completeness                   Orsta, arXiv 2505.18129
    overlap         sum of the IoUs of matched boxes / boxes given
    completeness    gold boxes that are matched / gold boxes

Two boxes match if their labels are the same and their IoU reaches a threshold, which rises while a
run trains: 0.85 in the first tenth, 0.95 in the next 15 %, then 0.99. The weight and the ramp are
Orsta's. Orsta does not state how the parts are normalised: that is ours.
"""

import ast
import json

from rewards.views import last_block

RAMP = ((0.10, 0.85), (0.25, 0.95), (1.0, 0.99))  # up to this progress: this threshold
COMPLETENESS = 0.3
LONGEST = 20_000  # characters that are read as a list


def box_reward(gold: str, response: str, progress: float = 1.0) -> float:
    """0 to 1. `progress` is the share of the training that is done; evaluation is strict."""
    wanted, given = read_boxes(gold), read_boxes(response)
    if not wanted or not given:
        return 0.0
    ious = match(wanted, given, threshold_at(progress))
    overlap, completeness = sum(ious) / len(given), len(ious) / len(wanted)
    return (1 - COMPLETENESS) * overlap + COMPLETENESS * completeness


def threshold_at(progress: float) -> float:
    """The least IoU that counts.

    >>> [threshold_at(progress) for progress in (0.05, 0.2, 0.9)]
    [0.85, 0.95, 0.99]
    """
    for end, threshold in RAMP:
        if progress <= end:
            return threshold
    return RAMP[-1][1]


def read_boxes(text: str) -> list[dict]:
    """The boxes of an answer block, or of the text. Entries that are not boxes are skipped."""
    block = last_block(text)
    text = (text if block is None else block).strip()
    start, end = text.find("["), text.rfind("]")
    boxes = []
    for box in read_list(text[start : end + 1][:LONGEST]):
        if is_box(box) and box not in boxes:  # one box said many times is one
            boxes.append(box)
    return boxes


def read_list(text: str) -> list:
    """A list in JSON or as Python writes it; [] for anything else. Nothing is run."""
    for reader in (json.loads, ast.literal_eval):
        try:
            found = reader(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list) else []
    return []


def is_box(box) -> bool:
    """Four numbers with a corner above and left of the other, and a label."""
    if not isinstance(box, dict) or not isinstance(box.get("label"), str):
        return False
    corners = box.get("bbox_2d")
    if not isinstance(corners, list) or len(corners) != 4:
        return False
    if not all(type(value) in (int, float) for value in corners):
        return False
    return corners[0] <= corners[2] and corners[1] <= corners[3]


def match(wanted: list[dict], given: list[dict], threshold: float) -> list[float]:
    """IoUs of the matched pairs, the best pair first; each box is in one pair at most."""
    pairs = []
    for i, gold in enumerate(wanted):
        for j, box in enumerate(given):
            if gold["label"].lower() == box["label"].lower():
                pair_iou = iou(gold["bbox_2d"], box["bbox_2d"])
                if pair_iou >= threshold:
                    pairs.append((pair_iou, i, j))

    ious, used_golds, used_boxes = [], set(), set()
    for pair_iou, i, j in sorted(pairs, reverse=True):
        if i not in used_golds and j not in used_boxes:
            ious.append(pair_iou)
            used_golds.add(i)
            used_boxes.add(j)
    return ious


def iou(a: list[float], b: list[float]) -> float:
    """Area of the intersection / area of the union.

    >>> iou([0, 0, 10, 10], [0, 5, 10, 10])
    0.5
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)
