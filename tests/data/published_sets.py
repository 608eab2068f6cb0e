"""Small sets on disk, each laid out as it is published, for the tests of the readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from audit.card.load import built_in_cards, load_card
from audit.data import Samples, read_samples
from audit.errors import DataError


def image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 10), (shade % 256, shade * 7 % 256, shade // 256)).save(path)


def rafdb(root: Path) -> None:
    """Write 84 images of RAF-DB's basic set: seven expressions, two genders and "unsure", three races, five ages."""
    base, lines = root / "RAF-DB" / "basic", []
    for number in range(84):
        name = f"{'train' if number % 2 else 'test'}_{number:05d}"
        image(base / "Image" / "aligned" / f"{name}_aligned.jpg", number * 3)
        lines.append(f"{name}.jpg {number // 2 % 7 + 1}")
        traits = "\n".join(["10.5\t20.5"] * 5 + [str(number // 14 % 3), str(number // 28 % 3), str(number % 5)])
        path = base / "Annotation" / "manual" / f"{name}_manu_attri.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traits + "\n", encoding="utf-8")
    (base / "EmoLabel").mkdir()
    (base / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def celeba(root: Path) -> None:
    base = root / "CelebA"
    attributes, identities, splits = ["60", "Male Smiling Young"], [], []
    for number in range(60):
        name = f"{number + 1:06d}.jpg"
        image(base / "img_align_celeba" / name, number * 4)
        signs = [1 if number & bit else -1 for bit in (1, 2, 4)]
        attributes.append(f"{name}  {signs[0]}  {signs[1]} {signs[2]}")
        identities.append(f"{name} {number // 20 * 100 + number % 20}")
        splits.append(f"{name} {number // 20}")
    for file, rows in (
        ("list_attr_celeba", attributes),
        ("identity_CelebA", identities),
        ("list_eval_partition", splits),
    ):
        (base / f"{file}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def utkface(root: Path) -> None:
    for number in range(60):
        stamp = f"2017011617{number:05d}000"
        image(
            root
            / "UTKFace"
            / f"part{number % 2}"
            / f"{number + 1}_{number % 2}_{number // 2 % 5}_{stamp}.jpg.chip.jpg",
            number,
        )
    image(root / "UTKFace" / "61_3_20170109142408075.jpg", 300)  # as some of the set, without a gender


def fairface(root: Path) -> None:
    base = root / "FairFace"
    races = ("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern")
    for split, count in (("train", 56), ("val", 56)):
        rows = ["file,age,gender,race,service_test"]
        for number in range(count):
            image(base / split / f"{number + 1}.jpg", number * 2 + (split == "val"))
            rows.append(
                f"{split}/{number + 1}.jpg,20-29,{('Male', 'Female')[number % 2]},{races[number // 2 % 7]},True"
            )
        (base / f"fairface_label_{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def fer2013(root: Path) -> None:
    base = root / "FER2013"
    base.mkdir()
    usage = ("Training", "PublicTest", "PrivateTest")
    rows, votes, groups = (
        ["emotion,pixels,Usage"],
        ["Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"],
        ["image,gender"],
    )
    for number in range(90):
        pixels = " ".join(str((number * 2 + k) % 256) for k in range(48 * 48))
        rows.append(f"{number % 7},{pixels},{usage[number // 30]}")
        counts = [0] * 10
        counts[number % 5] = 8
        counts[9] = 2
        if number == 0:
            counts = [5, 5, *[0] * 8]  # a tie
        if number == 1:
            counts = [0] * 8 + [1, 9]  # no face
        votes.append(f"{usage[number // 30]},fer{number:07d}.png,{','.join(map(str, counts))}")
        groups.append(f"fer{number:07d}.png,{('woman', 'man')[number % 2]}")
    for file, lines in (("fer2013", rows), ("fer2013new", votes), ("groups", groups)):
        (base / f"{file}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def affectnet(root: Path) -> None:
    base = root / "AffectNet"
    for split, numbers in (("training", range(80)), ("validation", range(80, 160))):
        boxes = "face_x,face_y,face_width,face_height"
        rows = [f"subDirectory_filePath,{boxes},facial_landmarks,expression,valence,arousal"]
        for number in numbers:
            name = f"{number % 3}/{number:04d}.jpg"
            photograph(base / "Manually_Annotated" / "Manually_Annotated_Images" / name, number)
            rows.append(f"{name},20,0,16,16,1.0;2.0,{number % 11},0.1,0.2")
        path = base / "Manually_Annotated_file_lists" / f"{split}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    groups = [f"{number % 3}/{number:04d}.jpg,{('woman', 'man')[number // 11 % 2]}" for number in range(160)]
    (base / "groups.csv").write_text("\n".join(["image,gender", *groups]) + "\n", encoding="utf-8")


def expw(root: Path) -> None:
    """Write 60 photographs of two faces each."""
    base = root / "ExpW"
    rows, groups = [], ["image,gender"]
    for number in range(60):
        name = f"actor_{number}.jpg"
        photograph(base / "image" / "origin" / name, number)
        for face, left in enumerate((0, 20)):
            rows.append(f"{name} {face} 0 {left} {left + 16} 16 56.3 {(number + face) % 7}")
            groups.append(f"origin/{name}#{face},{('woman', 'man')[number // 7 % 2]}")
    (base / "label.lst").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (base / "groups.csv").write_text("\n".join(groups) + "\n", encoding="utf-8")


def photograph(path: Path, shade: int) -> None:
    """Write a dark half and a bright one, 40 px wide and 20 high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (40, 20), (shade % 90, shade // 90, 0))
    picture.paste((255 - shade % 90, 255, 255 - shade // 90), (20, 0, 40, 20))
    picture.save(path, quality=100, subsampling=0)


def stanford40(root: Path) -> None:
    base, groups = root / "Stanford40", ["image,gender"]
    (base / "ImageSplits").mkdir(parents=True)
    actions = ("playing_guitar", "running", "cooking", "cleaning_the_floor", "fixing_a_car")
    for split, numbers in (("train", range(60)), ("test", range(60, 200))):
        names = [f"{actions[number % 5]}_{number:03d}.jpg" for number in numbers]
        for number, name in zip(numbers, names, strict=True):
            image(base / "JPEGImages" / name, number * 2)
            groups.append(f"JPEGImages/{name},{('woman', 'man')[number // 5 % 2]}")
        (base / "ImageSplits" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (base / "groups.csv").write_text("\n".join(groups) + "\n", encoding="utf-8")


def lfw(root: Path) -> None:
    """Write 120 people of one or two photographs; the legend also names an image that is not of LFW."""
    base = root / "LFW"
    legend = ["user.id,image,emotion", "628,facial-expressions_2868588k.jpg,angry"]
    names: dict[str, list[str]] = {"male": [], "female": []}
    for number in range(120):
        person = f"Ann_{number:03d}"
        for photograph in range(1, 2 + number % 2):
            file = f"{person}_{photograph:04d}.jpg"
            image(base / "lfw" / person / file, number * 2 + photograph)
            legend.append(f"{(302, 457)[number % 2]},{file},{('neutral', 'HAPPINESS', 'happy')[number % 3]}")
            names["male" if number % 4 < 2 else "female"].append(file)
    (base / "legend.csv").write_text("\n".join(legend) + "\n", encoding="utf-8")
    for gender, files in names.items():
        (base / f"{gender}_names.txt").write_text("\n".join(files) + "\n", encoding="utf-8")


def miap(root: Path) -> None:
    """Write 60 photographs of two people each, a dark one to the left and a bright one to the right."""
    base = root / "MIAP"
    signs = "IsOccluded,IsTruncated,IsGroupOf,IsDepictionOf,IsInsideOf"
    header = f"ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax,{signs},GenderPresentation,AgePresentation"
    genders, ages = ("Predominantly Masculine", "Predominantly Feminine"), ("Middle", "Older")
    for part, (split, folder) in enumerate((("train", "train"), ("val", "validation"), ("test", "test"))):
        rows = [header]
        for number in range(part * 20, part * 20 + 20):
            photograph(base / folder / f"{number:016x}.jpg", number)
            for person, left in enumerate(("0.0", "0.5")):
                box = f"{left},{float(left) + 0.4},0.0,0.8"
                shown = f"{genders[(number + person) % 2]},{ages[number // 2 % 2]}"
                rows.append(f"{number:016x},/m/01g317,1,{box},0,0,0,0,0,{shown}")
        (base / f"open_images_extended_miap_boxes_{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def imsitu(root: Path) -> None:
    """Write ten photographs a verb and part: of three annotators some name a man or a woman, some a chef."""
    base = root / "imSitu"
    man, woman, chef = "n10287213", "n10787470", "n09908446"
    verbs = ("cooking", "washing", "shopping", "driving", "coaching", "repairing", "jogging", "phoning")
    glosses = {man: ["adult male", "man"], woman: ["adult female", "woman"], chef: ["chef"]}
    nouns = {synset: {"gloss": gloss, "def": "somebody"} for synset, gloss in glosses.items()}
    space = {"nouns": nouns, "verbs": {verb: {"order": ["agent", "place"]} for verb in verbs}}
    write_json(base / "imsitu_space.json", space)
    shade = 0
    for split in ("train", "dev", "test"):
        rows = {}
        for verb in verbs:
            for number in range(10):
                name = f"{verb}_{('train', 'dev', 'test').index(split) * 10 + number}.jpg"
                agents = ((man, man, chef), (woman, chef, ""))[number % 2]
                rows[name] = {"verb": verb, "frames": [{"agent": agent, "place": ""} for agent in agents]}
                image(base / "of500_images_resized" / name, shade)
                shade += 3
        write_json(base / f"{split}.json", rows)


COCO_OBJECTS = (
    "person", "tie", "frisbee", "skis", "snowboard", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket",
)  # fmt: skip


def coco(root: Path) -> None:
    base, gear = root / "COCO", COCO_OBJECTS[2:]
    categories = [{"id": place + 1, "name": name, "supercategory": ""} for place, name in enumerate(COCO_OBJECTS)]
    for split, start, count in (("train2014", 0, 72), ("val2014", 500, 144)):
        images, objects, captions = [], [], []
        for number in range(start, start + count):
            name = f"COCO_{split}_{number:012d}.jpg"
            image(base / split / name, number)
            images.append({"id": number, "file_name": name, "width": 10, "height": 10})
            shown = ("person", gear[number % len(gear)])
            objects += [
                {"image_id": number, "category_id": COCO_OBJECTS.index(o) + 1, "segmentation": [[1, 2]]} for o in shown
            ]
            word = ("man", "woman")[number // len(gear) % 2]
            captions += [
                {"image_id": number, "caption": text} for text in (f"A {word} outside.", "Someone in a mantle.")
            ]
        shared = {"info": {}, "licenses": []}
        listed = {**shared, "images": images, "annotations": objects, "categories": categories}
        write_json(base / "annotations" / f"instances_{split}.json", listed)
        write_json(
            base / "annotations" / f"captions_{split}.json", {**shared, "images": images, "annotations": captions}
        )


FACET_SIGNS = (
    *(f"gender_presentation_{name}" for name in ("masc", "fem", "non_binary", "na")),
    *(f"age_presentation_{name}" for name in ("young", "middle", "older", "na")),
    *(f"skin_tone_{tone}" for tone in range(1, 11)),
    "skin_tone_na",
    *(f"hair_color_{name}" for name in ("brown", "blonde", "grey", "na", "black", "colored", "red")),
    *(f"hairtype_{name}" for name in ("coily", "dreadlocks", "bald", "straight", "curly", "wavy", "na")),
    *(f"has_{name}" for name in ("facial_hair", "tattoo", "cap", "mask", "headscarf", "eyeware")),
    *(f"visible_{name}" for name in ("torso", "face", "minimal")),
    *(f"lighting_{name}" for name in ("underexposed", "dimly_lit", "well_lit", "na", "overexposed")),
)
FACET_NAMES = (
    "astronaut backpacker ballplayer bartender basketball_player boatman carpenter cheerleader climber computer_user "
    "craftsman dancer disk_jockey doctor drummer electrician farmer fireman flutist gardener guard guitarist gymnast "
    "hairdresser horseman judge laborer lawman lifeguard machinist motorcyclist nurse painter patient prayer referee "
    "repairman reporter retailer runner sculptor seller singer skateboarder soccer_player soldier speaker student "
    "teacher tennis_player trumpeter waiter"
)
FACET_CLASSES = FACET_NAMES.split()


def facet(root: Path) -> None:
    """Write 144 photographs of two people each: their signs go round."""
    base = root / "FACET"
    classes = (
        "basketball_player", "dancer", "guitarist", "motorcyclist", "nurse", "skateboarder", "soldier", "tennis_player",
    )  # fmt: skip
    rows = [",".join(("person_id", "filename", "bounding_box", "class1", "class2", *FACET_SIGNS))]
    for number in range(144):
        photograph(base / f"imgs_{number % 3 + 1}" / f"sa_{number}.jpg", number)
        for person, left in enumerate((0, 20)):
            tone = (2, 5, 9)[number // 8 % 3]
            signs = dict.fromkeys(FACET_SIGNS, "0") | {f"skin_tone_{tone}": "2", f"skin_tone_{tone + 1}": "1"}
            signs[f"gender_presentation_{('masc', 'fem')[person]}"] = "1"
            signs[f"age_presentation_{('young', 'middle', 'older')[number // 24 % 3]}"] = "1"
            box = f'"{{""x"": {left}, ""y"": 0, ""width"": 16, ""height"": 16}}"'
            rows.append(
                ",".join((f"{number * 2 + person}", f"sa_{number}.jpg", box, classes[number % 8], "", *signs.values()))
            )
    (base / "annotations").mkdir()
    (base / "annotations" / "annotations.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def flickr8k(root: Path) -> None:
    """Write 216 photographs, 36 of each kind and gender, with five captions each."""
    base, verbs = root / "Flickr8k", {"sport": "rides a bike", "move": "walks along", "still": "sits outside"}
    lines, splits = [], {"train": [], "dev": [], "test": []}  # type: ignore[var-annotated]
    for number in range(216):
        name = f"{1000 + number}_ab12.jpg"
        image(base / "Flicker8k_Dataset" / name, number)
        verb, who = list(verbs.values())[number % 3], ("man", "woman")[number // 3 % 2]
        said = [
            f"A {who} {verb} .",
            f"An adult {who} {verb} .",
            f"The {who} is here .",
            "A dog .",
            "Somebody outside .",
        ]
        lines += [f"{name}#{place}\t{text}" for place, text in enumerate(said)]
        splits[("train", "train", "dev", "test")[number // 6 % 4]].append(name)
    (base / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, names in splits.items():
        (base / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def celebamask(root: Path) -> None:
    """Write 60 photographs, whose names in CelebA are others."""
    base = root / "CelebAMask-HQ"
    attributes, mapping = ["60", "Male Smiling Young "], ["idx      orig_idx   orig_file"]
    identities, splits = [], []
    for number in range(60):
        original = f"{500 - number:06d}.jpg"
        image(base / "CelebA-HQ-img" / f"{number}.jpg", number * 4)
        signs = [1 if number & bit else -1 for bit in (1, 2, 4)]
        attributes.append(f"{number}.jpg  {signs[0]}  {signs[1]} {signs[2]}")
        mapping.append(f"{number}          {499 - number}     {original}")
        identities.append(f"{original} {number // 20 * 100 + number % 20}")
        splits.append(f"{original} {number // 20}")
    for file, rows in (
        ("CelebAMask-HQ-attribute-anno", attributes),
        ("CelebA-HQ-to-CelebA-mapping", mapping),
        ("identity_CelebA", identities),
        ("list_eval_partition", splits),
    ):
        (base / f"{file}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def records(rows: list[dict[str, Any]]) -> np.ndarray:
    """Return a row of MATLAB's records."""
    answer = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        answer[0, place] = tuple(row.values())
    return answer


def cells(names: tuple[str, ...]) -> np.ndarray:
    """Return a row of MATLAB's cells."""
    answer = np.empty((1, len(names)), dtype=object)
    answer[0, :] = names
    return answer


def emotic(root: Path) -> None:
    """Write 44 photographs of two people each, a dark one to the left and a bright one to the right."""
    base, parts = root / "EMOTIC", {}
    folders = ("mscoco/images", "framesdb/images", "emodb_small/images", "ade20k/images")
    for part, (split, count) in enumerate((("train", 20), ("val", 12), ("test", 12))):
        rows = []
        for number in range(count):
            name = f"photo_{split}_{number}.jpg"
            photograph(base / "emotic" / folders[number % 4] / name, part * 40 + number)
            people = []
            for person, left in enumerate((0, 20)):
                emotions = (("Happiness", "Peace"), ("Doubt/Confusion",))[number % 2]
                felt, sizes = records([{"categories": cells(emotions)}]), records([{"valence": 5.0, "arousal": 4.0}])
                one = {"body_bbox": np.array([[left, 0, left + 16, 16]]), "annotations_categories": felt}
                if split == "train":
                    one |= {"annotations_continuous": sizes}
                else:  # of several annotators, and what they have together
                    both = np.concatenate([felt, records([{"categories": cells(("Fatigue",))}])], axis=1)
                    one |= {"annotations_categories": both, "combined_categories": cells((*emotions, "Fatigue"))}
                    one |= {"annotations_continuous": sizes, "combined_continuous": sizes}
                people.append(one | {"gender": ("Male", "Female")[person], "age": ("Adult", "Kid")[number // 2 % 2]})
            size, origin = records([{"n_col": 40, "n_row": 20}]), records([{"name": "mscoco", "info": 1.0}])
            rows.append(
                {
                    "filename": name,
                    "folder": folders[number % 4],
                    "image_size": size,
                    "original_database": origin,
                    "person": records(people),
                }
            )
        parts[split] = records(rows)
    (base / "Annotations").mkdir()
    savemat(base / "Annotations" / "Annotations.mat", parts)


def fhibe(root: Path) -> None:
    """Write 120 people in two photographs each; person 0 and 1, and 1 and 2, also stand in one together."""
    base = root / "FHIBE" / "fhibe.20250901.m_downsampled_public"
    poses = ("0. Standing", "1. Sitting", "2. Walking", "15. Free-text")
    tones = ("0. [102, 78, 65]", "2. [164, 131, 103]", "5. [198, 180, 157]")
    header = (
        "image_id,filepath,subject_id,is_primary,segments,consent,age,nationality,ancestry,pronoun,natural_skin_color"
    )
    rest = "apparent_skin_color,scene,action_body_pose,action_subject_object_interaction,face_bbox,person_bbox"
    rows, shown = [f"{header},{rest}"], [((person,), shot) for person in range(120) for shot in (0, 1)]
    for people, shot in [*shown, ((0, 1), 2), ((1, 2), 3)]:
        name = f"{people[0]:04d}-{shot}"
        path = f"data/raw/fhibe_downsampled/{people[0]:04d}/{name}/main_{name}.png"
        photograph(base / path, people[0] * 4 + shot)
        for place, person in enumerate(people):
            region = ("['0. Africa', '5. Western Africa']", "['11. Asia']", "['0. Africa', '17. Europe']")[person % 3]
            chosen = ("['0. She/her/hers']", "['1. He/him/his']", "['0. She/her/hers', '2. They/them/their']")[
                0 if person % 7 else 2 if person else 1
            ]
            outline = "[]" if person else "[" + "{'x': 1.5, 'y': 2.5}, " * 8000 + "]"
            cells_of_row = [
                name, path, f"subject-{person:04d}", place == 0, outline, True, 20 + person % 50,
                "['93. Indian']", region, "['1. He/him/his']" if person % 2 else chosen, tones[person % 3],
                tones[(person + 1) % 3], "12. Indoor: Home or hotel", poses[(person + shot) % 4],
                "['0. None']" if person % 5 else "['5. Eating', '21. Using an electronic device']",
                "[1, 1, 4, 4]", f"[{20 * place}.5, 0, 16, 16]",
            ]  # fmt: skip
            rows.append(",".join('"' + str(cell).replace('"', '""') + '"' for cell in cells_of_row))
    listed = base / "data" / "processed" / "fhibe_downsampled" / "fhibe_downsampled.csv"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(rows) + "\n", encoding="utf-8")


def casualconversations2(root: Path) -> None:
    """Write two frames of each of 60 people's two videos."""
    base, entries = root / "CasualConversations2", []
    genders = ("cis man", "cis woman", "cis man", "cis woman", "non-binary")
    for person in range(60):
        for script in ("scripted", "nonscripted"):
            video = f"{person:04d}_portuguese_{script}_1"
            entries.append(
                {
                    "video_name": f"{video}.mp4",
                    "subject_id": f"{person:04d}",
                    "age": "prefer not to say" if person == 7 else str(20 + person % 50),
                    "gender": genders[person % 5],
                    "geo_location": {"country": "brazil", "state_region": "x"},
                    "native_language": "portuguese",
                    "monk_skin_tone": {"scale": f"scale {1 + person // 2 % 10}", "confidence": "high"},
                    "fitzpatrick_skin_tone": {"type": "type iii", "confidence": "medium"},
                }
            )
            for frame in range(2):
                part = f"ccv2-frames-part-{1 + person // 30}"
                shade = person * 6 + frame * 2 + (script == "scripted")
                image(base / part / f"{person:04d}" / f"{video}_raw_frame{frame * 44:08d}.jpg", shade * 3)
    write_json(base / "annotations" / "CasualConversationsV2.json", entries)


def hagrid(root: Path) -> None:
    """Write people who show each gesture once; some guesses are of no face, or of two."""
    base = root / "HaGRID"
    for part, (split, people) in enumerate((("train", range(14)), ("val", range(14, 26)), ("test", range(26, 40)))):
        for place, gesture in enumerate(("call", "fist", "like", "ok", "palm", "peace")):
            rows = {}
            for person in people:
                name = f"{part:08d}-{place:04d}-{person:04d}"
                image(base / "hagrid_dataset" / gesture / f"{name}.jpg", (person * 6 + place) * 3)
                guesses = {"age": [24.41 + person % 40], "gender": [("female", "male")[person % 2]], "race": ["White"]}
                faces = {7: {"age": [], "gender": [], "race": []}, 8: {k: 2 * v for k, v in guesses.items()}}
                rows[name] = {
                    "bboxes": [[0.1, 0.2, 0.3, 0.4]],
                    "labels": [gesture],
                    "united_bbox": None,
                    "united_label": None,
                    "user_id": f"user{person}",
                    "hand_landmarks": [[[0.1, 0.2]]],
                    "meta": faces.get(person, guesses),
                }
            write_json(base / "hagrid_annotations" / split / f"{gesture}.json", rows)


SETS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "rafdb": ("raf-db", rafdb),
    "celeba": ("celeba", celeba),
    "utkface": ("utkface", utkface),
    "fairface": ("fairface", fairface),
    "fer2013": ("fer2013", fer2013),
    "affectnet": ("affectnet", affectnet),
    "expw": ("expw", expw),
    "lfw": ("lfw-expressions", lfw),
    "miap": ("miap", miap),
    "stanford40": ("stanford-40", stanford40),
    "imsitu": ("imsitu", imsitu),
    "coco": ("coco-sports", coco),
    "facet": ("facet", facet),
    "flickr8k": ("flickr8k-actions", flickr8k),
    "celebamask": ("celebamask-hq", celebamask),
    "emotic": ("emotic", emotic),
    "fhibe": ("fhibe", fhibe),
    "casualconversations2": ("casual-conversations-2", casualconversations2),
    "hagrid": ("hagrid", hagrid),
}


def read_set(name: str, root: Path) -> Samples:
    path = built_in_cards()[SETS[name][0]]
    return read_samples(load_card(path), card_path=path, data_root=root)


def assert_named(name: str, file: str, content: str | None, what: str, root: Path) -> None:
    """Lay a set out, damage or remove one of its files, and check that reading it says which and why."""
    SETS[name][1](root)
    path = root / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_set(name, root)
    assert what in str(caught.value)
    assert path.name in str(caught.value)
