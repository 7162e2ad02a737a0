"""Every error that crosses the public API, in one tree.

FcnDeployError                       .hint says what to do next; a foreign error is chained
├─ ExportError                       UnsupportedModelError, NonFiniteWeightsError, ParityError,
│                                    BudgetError
├─ BuildError                        UnsupportedOpError, ProfileError, BuildCancelledError
├─ ArtifactError                     ArtifactMissingError(FileNotFoundError), ManifestError,
│                                    DigestMismatchError, UntrustedArtifactError, ArtifactBusyError,
│                                    OutputExistsError(FileExistsError), EngineMismatchError
├─ InputError(ValueError)            ShapeError, DTypeError, FrameTooLargeError, NonFiniteInputError
├─ ExecutionError                    NonFiniteOutputError, DeviceMemoryError(MemoryError),
│                                    ClosedError, ForkedProcessError
├─ BackendUnavailableError(ImportError)
├─ SourceError(OSError)              SourceOpenError, SourceTimeoutError(TimeoutError),
│                                    SourceLostError, FrameDropError
├─ SinkError(OSError)                DiskFullError, SinkFormatError
└─ BenchmarkError
"""

from __future__ import annotations


class FcnDeployError(Exception):
    """A failure that this project foresaw.

    Args:
        message: what failed, what was found and what was expected.
        hint: what to do next, or None where nothing can be advised.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class ExportError(FcnDeployError):
    """A model could not be turned into an artifact."""


class UnsupportedModelError(ExportError):
    """The model, or the file it came in, is of a kind that cannot be exported."""


class NonFiniteWeightsError(ExportError):
    """A weight is NaN or infinite."""


class ParityError(ExportError):
    """The exported graph does not compute what the PyTorch module computes."""


class BudgetError(ExportError):
    """No variant stays within the allowed loss of mean IoU."""


class BuildError(FcnDeployError):
    """An engine could not be built from an ONNX graph."""


class UnsupportedOpError(BuildError):
    """The graph holds an operator that the backend cannot run."""


class ProfileError(BuildError):
    """An optimization profile is inconsistent or does not fit the graph."""


class BuildCancelledError(BuildError):
    """The build was stopped before its end."""


class ArtifactError(FcnDeployError):
    """An artifact on disk is missing, damaged, foreign or in use."""


class ArtifactMissingError(ArtifactError, FileNotFoundError):
    """The artifact, or a file that its manifest lists, is not there."""


class ManifestError(ArtifactError):
    """The manifest does not follow the format, or does not fit the model."""


class DigestMismatchError(ArtifactError):
    """A file's size or SHA-256 differs from what the manifest says."""


class UntrustedArtifactError(ArtifactError):
    """The file could execute code or read outside its folder, and it is not trusted."""


class ArtifactBusyError(ArtifactError):
    """Another process is writing the same artifact."""


class OutputExistsError(ArtifactError, FileExistsError):
    """Something is already there under the output's name."""


class EngineMismatchError(ArtifactError):
    """The engine was built for another GPU or library version."""


class InputError(FcnDeployError, ValueError):
    """A frame or a tensor given by the caller cannot be used."""


class ShapeError(InputError):
    """Rank, channels, height or width is not what the model takes."""


class DTypeError(InputError):
    """The array's dtype is not what the model takes."""


class FrameTooLargeError(InputError):
    """The frame needs more memory than is allowed."""


class NonFiniteInputError(InputError):
    """The input holds NaN or infinity."""


class ExecutionError(FcnDeployError):
    """The backend failed while it ran the network."""


class NonFiniteOutputError(ExecutionError):
    """The network's scores hold NaN or infinity, so no label can be derived."""


class DeviceMemoryError(ExecutionError, MemoryError):
    """The device has too little memory for this shape."""


class ClosedError(ExecutionError):
    """The object was used after close()."""


class ForkedProcessError(ExecutionError):
    """The object was opened before a fork and used in the child."""


class BackendUnavailableError(FcnDeployError, ImportError):
    """A library, a device or a precision that was asked for is not available here."""


class SourceError(FcnDeployError, OSError):
    """Frames could not be read."""


class SourceOpenError(SourceError):
    """The source could not be opened."""


class SourceTimeoutError(SourceError, TimeoutError):
    """The source did not answer in time."""


class SourceLostError(SourceError):
    """The source stopped delivering frames before its end."""


class FrameDropError(SourceError):
    """A frame would have been dropped where every frame is required."""


class SinkError(FcnDeployError, OSError):
    """Results could not be written."""


class DiskFullError(SinkError):
    """The file system has no room for the output."""


class SinkFormatError(SinkError):
    """The frame or the file type cannot be written by this sink."""


class BenchmarkError(FcnDeployError):
    """A measurement could not be made or cannot be compared."""
