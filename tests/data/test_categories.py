"""Categories with keypoints: names, skeleton, which of them a mirror exchanges."""

import json

import pytest

from keras_mrcnn.data.categories import Category, mirror_pairs

PERSON = {
    "id": 1,
    "name": "person",
    "keypoints": ["nose", "left_eye", "right_eye"],
    "skeleton": [[1, 2], [1, 3]],
}


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["nose", "left_eye", "right_eye"], [(1, 2)]),
        (["Right Ear", "nose", "Left Ear"], [(0, 2)]),
        (["eyeL", "eyeR", "legL2", "head", "legR2", "legR1"], [(0, 1), (2, 4)]),
        (["LWing", "RWing"], [(0, 1)]),
        (["l_wrist", "r_wrist", "wrist.r", "wrist.l", "elbow 1 L", "elbow 1 R"], [(0, 1), (2, 3), (4, 5)]),
        (["LEFT_ANKLE", "RIGHT_ANKLE", "L", "R"], [(0, 1), (2, 3)]),
        (["leftHip", "rightHip"], [(0, 1)]),
        # an l or r inside of a word says nothing; a side without the other has no partner
        (["tall", "tarr", "level", "revel", "left_eye", "front", "eyeR", "Lemon", "Remon"], []),
        (["bright", "bleft"], [(0, 1)]),  # read as a side: there is nothing else that the names could mean
        ([], []),
    ],
)
def test_partners_by_their_names(names, pairs):
    assert mirror_pairs(names) == pairs


def test_partners_of_a_category():
    category = Category.from_dict(PERSON)
    assert category == Category(1, "person", ("nose", "left_eye", "right_eye"), ((0, 1), (0, 2)), ((1, 2),))
    assert category.mirrored() == [0, 2, 1]


def test_partners_can_be_given():
    names = ["a", "b", "left", "right"]
    category = Category.from_dict({"id": 1, "name": "x", "keypoints": names, "flip_pairs": [["b", "a"]]})
    assert category.flip_pairs == ((1, 0),) and category.mirrored() == [1, 0, 2, 3]
    assert Category(1, "x", names, flip_pairs=[]).mirrored() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "category",
    [
        Category(7, "nut"),
        Category.from_dict(PERSON),
        Category(7, "x", ("a", "b"), flip_pairs=((0, 1),)),
        Category(7, "x", ("eyeL", "eyeR"), ((0, 1),), flip_pairs=()),
    ],
)
def test_it_comes_back_from_a_file(category):
    assert Category.from_dict(json.loads(json.dumps(category.to_dict()))) == category


def test_what_a_file_holds():
    assert Category(7, "nut").to_dict() == {"id": 7, "name": "nut"}
    assert Category.from_dict(PERSON).to_dict() == {**PERSON, "flip_pairs": [["left_eye", "right_eye"]]}


def test_a_skeleton_that_counts_from_zero():
    entry = {"id": 1, "name": "a", "keypoints": ["a_1", "a_2", "a_3"], "skeleton": [[0, 1], [1, 2]]}
    assert Category.from_dict(entry).skeleton == ((0, 1), (1, 2))
    assert Category.from_dict({**entry, "keypoints": []}) == Category(1, "a")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keypoints": "nose"}, "must be a list of names"),
        ({"keypoints": ["nose", 3]}, "must be a list of names"),
        ({"keypoints": ["nose", "nose"]}, "different names"),
        ({"skeleton": [[1, 2, 3]]}, "list of pairs of whole numbers"),
        ({"skeleton": [["nose", "left_eye"]]}, "list of pairs of whole numbers"),
        ({"skeleton": [[1, 4]]}, "from 1 to 3. Received"),
        ({"skeleton": [[0, 3]]}, "from 0 to 2. Received"),
        ({"flip_pairs": [[1, 2]]}, "pairs of names"),
        ({"flip_pairs": [["left_eye", "ear"]]}, "pairs of its keypoints"),
        ({"flip_pairs": [["left_eye", "right_eye"], ["nose", "left_eye"]]}, "each in one pair at most"),
    ],
)
def test_errors_say_what_came(changes, says):
    with pytest.raises(ValueError, match=f"(?s)category 1 'person'.*{says}"):
        Category.from_dict({**PERSON, **changes})
