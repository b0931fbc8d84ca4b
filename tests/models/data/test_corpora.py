"""Corpus readers: every layout, and every way in which a corpus can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from mien.errors import DataError
from mien.messages import EMOTIONS
from mien.models.data.corpora import content_digest, read_corpus
from mien.models.data.labels import GOEMOTIONS

MOSI = "id,video_id,clip_id,start,end,text,sentiment,split\n"
MELD = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def faces(path: Path, names: list[str], **arrays: np.ndarray) -> Path:
    given = {"images": np.full((len(names), 48, 48), 7, np.uint8), "labels": np.array(names)} | arrays
    np.savez(path, allow_pickle=True, **given)  # some files are wrong
    return path


def test_mosi_table(tmp_path: Path) -> None:
    rows = "a_1,a,1,0.5,2.5,so good,2.4,train\na_2,a,2,2.5,2.5,she is beautiful,0.2,train\nb_1,b,1,0,1,bad,-3.0,test\n"
    corpus = read_corpus(write(tmp_path / "mosi.csv", MOSI + rows))
    assert corpus.name == "mosi"
    assert corpus.skipped == (("a_2", "zero duration"),)
    (first,) = corpus.split("train")
    assert (first.id, first.speaker, first.text) == ("a_1", "a", "so good")
    assert (first.start_s, first.end_s, first.sentiment, first.coarse) == (0.5, 2.5, 2.4, False)
    assert first.emotion is None
    assert first.emotion_target is None
    assert [item.id for item in corpus.split("test")] == ["b_1"]


def test_mosei_table_has_no_id_and_may_lack_times(tmp_path: Path) -> None:
    rows = "v,1_2,,,no times here,0.0,valid\nv,1_3,-0.4,3.0,begins before its file,1.0,valid\n"
    corpus = read_corpus(write(tmp_path / "table.csv", "video_id,clip_id,start,end,text,sentiment,split\n" + rows))
    assert corpus.name == "mosei"
    assert [(item.id, item.start_s, item.end_s) for item in corpus.items] == [
        ("v_1_2", None, None),
        ("v_1_3", 0.0, 3.0),
    ]


def test_goemotions_maps_to_seven_and_keeps_ambiguity(tmp_path: Path) -> None:
    rows = "x,thanks a lot,gratitude|joy\ny,oh really,curiosity|anger\nz,fine,neutral\nw,unlabelled,\n"
    corpus = read_corpus(write(tmp_path / "goemotions_valid.csv", "id,text,labels\n" + rows))
    happy, torn, neutral = corpus.items
    assert {item.split for item in corpus.items} == {"valid"}
    assert (happy.emotion, happy.emotions, neutral.emotion) == ("happy", None, "neutral")
    assert torn.emotion is None
    assert torn.emotion_target == tuple(0.5 * (name in ("angry", "surprise")) for name in EMOTIONS)
    assert corpus.skipped == (("w", "no label"),)


def test_goemotions_grouping_has_every_category_once() -> None:
    fine = [name for names in GOEMOTIONS.values() for name in names]
    assert len(fine) == len(set(fine)) == 28
    assert tuple(sorted(GOEMOTIONS)) == tuple(sorted(EMOTIONS))


def test_meld_table_gives_emotion_and_the_sign_of_sentiment(tmp_path: Path) -> None:
    rows = '"No, no!",Ann,sadness,negative,0,3\nHi,Bob,joy,positive,1,0\n"  ",Bob,joy,positive,1,1\n'
    corpus = read_corpus(write(tmp_path / "meld_test.csv", MELD + rows))
    sad, happy = corpus.items
    assert (sad.id, sad.split, sad.speaker, sad.emotion) == ("dia0_utt3", "test", "Ann", "sad")
    assert (sad.sentiment, sad.coarse, happy.sentiment) == (-1.0, True, 1.0)
    assert corpus.skipped == (("dia1_utt1", "empty text"),)


def test_ravdess_folder_is_split_by_actor(tmp_path: Path) -> None:
    for name in ("03-01-08-01-01-01-01.flac", "Actor_17/03-01-02-01-01-01-17.wav", "03-01-05-01-01-01-24.flac",
                 "readme.wav"):  # fmt: skip
        write(tmp_path / name, "")
    corpus = read_corpus(tmp_path)
    found = {item.speaker: (item.split, item.emotion) for item in corpus.items}
    assert found == {"01": ("train", "surprise"), "17": ("valid", "neutral"), "24": ("test", "angry")}
    assert corpus.skipped == (("readme.wav", "file name is not one of ravdess"),)
    assert all(item.audio is not None and item.audio.is_file() for item in corpus.items)


def test_held_out_part_of_ravdess_reads_on_its_own(tmp_path: Path) -> None:
    write(tmp_path / "03-01-07-01-01-01-21.flac", "")
    assert [(item.split, item.emotion) for item in read_corpus(tmp_path).items] == [("test", "disgust")]


def test_emodb_folder(tmp_path: Path) -> None:
    for name in ("03a01Fa", "08a02Lb", "13b01Ta", "15a05Wa"):
        write(tmp_path / f"{name}.flac", "")
    corpus = read_corpus(tmp_path)
    assert corpus.name == "emodb"
    assert [(i.speaker, i.split, i.emotion) for i in corpus.items] == [
        ("03", "train", "happy"),
        ("08", "train", "neutral"),
        ("13", "valid", "sad"),
        ("15", "test", "angry"),
    ]


def test_fer2013_npz(tmp_path: Path) -> None:
    corpus = read_corpus(faces(tmp_path / "fer2013_test.npz", ["happy", "anger"]))
    assert [(i.split, i.image, i.emotion) for i in corpus.items] == [("test", 0, "happy"), ("test", 1, "angry")]
    assert corpus.images is not None
    assert corpus.images.shape == (2, 48, 48)


def test_folder_of_clips(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", "")
    write(tmp_path / "b.wav", "")
    rows = "a.mp4,happy,1.5,train,Ann,hello\nb.wav,,0,dev,,\ngone.mp4,sad,,,,\nb.wav,,,,,\n"
    table = write(tmp_path / "labels.csv", "file,emotion,sentiment,split,speaker,text\n" + rows)
    for given in (tmp_path, table):
        corpus = read_corpus(given)
        film, sound = corpus.items
        assert (film.video, film.audio, film.emotion, film.sentiment) == (
            tmp_path / "a.mp4",
            tmp_path / "a.mp4",
            "happy",
            1.5,
        )
        assert (sound.video, sound.audio, sound.split, sound.text) == (None, tmp_path / "b.wav", "valid", None)
        assert corpus.skipped == (("gone.mp4", "clip missing"), ("b.wav", "no label"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (MOSI + "a,a,1,0,1,hm,3.5,train\n", r"row 2: sentiment 3\.5 is outside -3 \.\.\. 3"),
        (MOSI + "a,a,1,0,1,hm,nan,train\n", "sentiment 'nan' is not a number"),
        (MOSI + "a,a,1,zero,1,hm,1,train\n", "start 'zero' is not a number"),
        (MOSI + "a,a,1,0,1,hm,1,trian\n", "split 'trian' is none of train, valid, test"),
        (MOSI + "a,a,1,0,1,hm\n", "row 2: 6 fields where the header has 8"),
        (MOSI + "a,a,1,0,1, ,1,train\n", r"no usable item \(1 x empty text\)"),
        ("text,sentiment,sentimant\nhm,1,1\n", "unknown column `sentimant`; did you mean `sentiment`"),
        ("words,mood\nhm,1\n", "which match no known layout"),
        ("text;sentiment\nhm;1,5\n", "has semicolons between its columns; save it with commas"),
        ("text\tsentiment\nhm\t1\n", "has tabs between its columns; save it with commas"),
        (MELD + "Hi,Ann,joyful,positive,0,0\n", "unknown emotion 'joyful'; did you mean `joy`"),
        (MELD + "Hi,Ann,joy,good,0,0\n", "sentiment 'good' is none of"),
        ("id,text,labels\nx,hm,gratitud\n", "did you mean `gratitude`"),
        ("", "no header row"),
    ],
)
def test_wrong_tables_are_one_clear_line(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_corpus(write(tmp_path / "table.csv", table))
    assert "\n" not in str(raised.value)


def test_wrong_clip_tables(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", "file,emotoin\na.mp4,sad\n")
    with pytest.raises(DataError, match="unknown column `emotoin`; did you mean `emotion`"):
        read_corpus(tmp_path)
    write(tmp_path / "labels.csv", "file,text\na.mp4,hm\n")
    with pytest.raises(DataError, match="needs a column `file` and a column `sentiment` or `emotion`"):
        read_corpus(tmp_path)
    write(tmp_path / "labels.csv", "file,emotion\na.mp4,sad\n")
    with pytest.raises(DataError, match="1 x clip missing"):
        read_corpus(tmp_path)


COLUMNS = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF"]


def voted(path: Path, counts: list[list[int]], **arrays: np.ndarray) -> Path:
    """A file as FER+'s, with a picture of grey level 10 x its row for each row of `counts`."""
    content = [cv2.imencode(".jpg", np.full((48, 48), 10 * row, np.uint8))[1].tobytes() for row in range(len(counts))]
    made = {
        "jpeg": np.frombuffer(b"".join(content), np.uint8), "ends": np.cumsum([len(c) for c in content]),
        "votes": np.array(counts, np.uint8), "columns": np.array(COLUMNS), "labels": np.array(["sad"] * len(counts)),
    }  # fmt: skip
    np.savez(path, allow_pickle=False, **(made | arrays))
    return path


def test_votes_on_faces(tmp_path: Path) -> None:
    corpus = read_corpus(
        voted(
            tmp_path / "ferplus_valid.npz",
            [
                [6, 0, 0, 3, 1, 0, 0, 0, 0, 0],  # agreed: neutral
                [0, 4, 4, 0, 0, 0, 0, 2, 0, 0],  # not agreed
                [3, 0, 0, 0, 0, 0, 0, 7, 0, 0],  # contempt
                [2, 1, 1, 1, 1, 1, 1, 1, 1, 0],  # nothing
            ],
            labels=np.array(["sad", "", "angry", "sad"]),
        )
    )
    assert corpus.name == "ferplus"
    assert corpus.images is not None
    assert corpus.images.shape == (4, 48, 48)
    assert abs(int(corpus.images[1].mean()) - 10) <= 1
    one, two = corpus.items
    assert (one.emotion, one.own_emotion, one.split, one.image) == ("neutral", "sad", "valid", 0)
    assert one.emotion_target is not None
    assert dict(zip(EMOTIONS, one.emotion_target, strict=True)) == pytest.approx(
        {"neutral": 6 / 9, "sad": 3 / 9} | dict.fromkeys(("happy", "angry", "fear", "disgust", "surprise"), 0.0)
    )
    assert (two.emotion, two.own_emotion) == (None, None)
    assert two.emotion_target is not None
    assert two.emotion_target[EMOTIONS.index("happy")] == two.emotion_target[EMOTIONS.index("surprise")] == 0.5
    assert [reason for _, reason in corpus.skipped] == [
        "most annotators say contempt", "annotators see no emotion in it"
    ]  # fmt: skip


def test_wrong_files_of_votes(tmp_path: Path) -> None:
    votes = [[10, 0, 0, 0, 0, 0, 0, 0, 0, 0]] * 2
    for wrong, why in (
        ({"columns": np.array([*COLUMNS[:-1], "smug"])}, "smug"),
        ({"columns": np.array(["neutral"] * 10)}, "seven emotions"),
        ({"votes": np.zeros((2, 9), np.uint8)}, r"whole numbers \(2, 10\)"),
        ({"votes": np.full((2, 10), -1)}, "must not be negative"),
        ({"ends": np.array([5, 3])}, "must rise"),
        ({"ends": np.array([5, 3], np.uint64)}, "must rise"),
        ({"jpeg": np.zeros(9, np.uint8), "ends": np.array([4, 9], np.uint64)}, "pictures of one size"),
        ({"jpeg": np.zeros(9, np.uint8), "ends": np.array([4, 9])}, "pictures of one size"),
        ({"labels": np.array(["sad"])}, "labels must be 2"),
    ):
        with pytest.raises(DataError, match=why):
            read_corpus(voted(tmp_path / "a.npz", votes, **wrong))


def test_tables_of_one_layout_are_told_apart_by_name(tmp_path: Path) -> None:
    table = "id,text,sentiment\n1,fine film,1.5\n"
    for name, corpus in (("sst5_train", "sst5"), ("mosei", "mosei"), ("mosi", "mosi"), ("mine", "mosi")):
        read = read_corpus(write(tmp_path / f"{name}.csv", table))
        assert (read.name, read.items[0].sentiment) == (corpus, 1.5)


def test_wrong_face_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown emotion 'smug'"):
        read_corpus(faces(tmp_path / "a.npz", ["smug"]))
    with pytest.raises(DataError, match=r"images must be \(n, height, width\) uint8"):
        read_corpus(faces(tmp_path / "b.npz", ["sad"], images=np.zeros((1, 48), np.uint8)))
    with pytest.raises(DataError, match=r"none 0, not \(1, 0, 48\)"):
        read_corpus(faces(tmp_path / "b.npz", ["sad"], images=np.zeros((1, 0, 48), np.uint8)))
    with pytest.raises(DataError, match="labels must be 1 names"):
        read_corpus(faces(tmp_path / "c.npz", ["sad"], labels=np.array([1])))
    with pytest.raises(DataError, match="cannot be read as npz of plain arrays"):
        read_corpus(faces(tmp_path / "d.npz", ["sad"], labels=np.array(["sad"], dtype=object)))
    np.savez(tmp_path / "e.npz", pixels=np.zeros(1))
    with pytest.raises(DataError, match="needs the arrays `images` and `labels`"):
        read_corpus(tmp_path / "e.npz")
    with pytest.raises(DataError, match="cannot be read as npz"):
        read_corpus(write(tmp_path / "f.npz", "no archive"))


def test_a_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "a.txt").write_text("a")
        (tmp_path / name / "b.txt").write_text("b")
    os.utime(tmp_path / "two" / "b.txt", (1, 1))
    first = content_digest(tmp_path / "one")
    assert content_digest(tmp_path / "two") == first
    assert content_digest(tmp_path / "one" / "b.txt") == content_digest(tmp_path / "two" / "b.txt") != first
    (tmp_path / "two" / "b.txt").write_text("c")
    assert content_digest(tmp_path / "two") != first
    (tmp_path / "two" / "b.txt").write_text("b")
    (tmp_path / "two" / "deep" / "a.txt").rename(tmp_path / "two" / "a.txt")
    assert content_digest(tmp_path / "two") != first


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.wav,sad,train,,\na.wav,sad,valid,,\n", r"a\.wav is in two splits, train and valid"),
        ("a.wav,sad,test,0,4\na.wav,sad,train,3,5\n", r"a\.wav, from 3 s on, is in two splits, test and train"),
        ("a.wav,sad,train,,\n./a.wav,sad,valid,3,4\n", "is in two splits"),
        ("a.wav,sad,train,0,9\na.wav,sad,train,1,2\na.wav,sad,valid,8,12\n", "from 8 s on, is in two splits"),
        ("a.wav,sad,train,0,4\na.wav,sad,valid,3.9,8\na.wav,sad,train,1,3\na.wav,sad,,0,8\n", ""),
    ],
)
def test_part_of_a_clip_is_in_one_split(tmp_path: Path, rows: str, message: str) -> None:
    write(tmp_path / "a.wav", "sound")
    write(tmp_path / "labels.csv", "file,emotion,split,start,end\n" + rows)
    if message:
        with pytest.raises(DataError, match=message):
            read_corpus(tmp_path)
    else:
        assert len(read_corpus(tmp_path).items) == 4, "neighbours may share what rounding leaves"


def test_a_text_is_in_one_split(tmp_path: Path) -> None:
    table = "id,text,sentiment,split\na,fine,1,train\nb,fine,1,test\n"
    assert len(read_corpus(write(tmp_path / "a.csv", table + "a,fine,1,train\n")).items) == 3
    with pytest.raises(DataError, match=r"a\.csv: a is in two splits, train and test; keep it in one"):
        read_corpus(write(tmp_path / "a.csv", table + "a,fine,1,test\n"))


def test_invalid_corpus_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_corpus(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is not a corpus"):
        read_corpus(write(tmp_path / "notes.txt", "hm"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no clips"):
        read_corpus(tmp_path / "empty")
    write(tmp_path / "odd" / "film.mp4", "")
    with pytest.raises(DataError, match="none named as RAVDESS or EmoDB"):
        read_corpus(tmp_path / "odd")
    (tmp_path / "latin.csv").write_bytes(b"text,sentiment\ncaf\xe9,1\n")
    with pytest.raises(DataError, match="not a CSV in UTF-8"):
        read_corpus(tmp_path / "latin.csv")
