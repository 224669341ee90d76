"""The jobs that are measured, and how each is spread over threads and ranks."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32, FLOAT16 = "float32", "float16"

#: --prebin is used only where it pays, so both particle numbers of a slope have to be beyond that.
PREBIN_SHARE = 5.0


@dataclass(frozen=True)
class Configuration:
    """One job.

    Attributes
    ----------
    name : str
        Letter in the tables.
    title : str
        What it is, in a few words.
    box, crop, binning : int
        s, n and b of spec 2.
    stack2d : bool
        2D stacks rather than volumes.
    max_dose : float or None
        e/A^2.
    switches : tuple of str
        Further options of the program.
    image_type : str
        Of the tilt images.
    share : float
        Particle numbers are multiplied by this: fewer of a costly particle, more of a cheap one.
    """

    name: str
    title: str
    box: int
    crop: int
    binning: int
    stack2d: bool = False
    max_dose: float | None = None
    switches: tuple[str, ...] = ()
    image_type: str = FLOAT32
    share: float = 1.0

    @property
    def window(self) -> int:
        """Box in unbinned pixels, s0."""
        return self.box * self.binning

    @property
    def radius(self) -> float:
        """Distance from the image's edge that a visible particle keeps, unbinned pixels."""
        return self.crop * self.binning / 2

    def options(self) -> list[str]:
        """Return the options on the program's command line."""
        words = ["--b", str(self.box), "--crop", str(self.crop), "--bin", str(self.binning)]
        if self.stack2d:
            words.append("--stack2d")
        if self.max_dose is not None:
            words += ["--max_dose", f"{self.max_dose:g}"]
        return [*words, *self.switches]


CONFIGURATIONS = {
    configuration.name: configuration
    for configuration in (
        Configuration("A", "192/96/4, 3D", 192, 96, 4),
        Configuration("B", "192/96/4, 2D stacks", 192, 96, 4, stack2d=True),
        Configuration("D", "96/64/2, 3D", 96, 64, 2, share=4.0),
        Configuration("E", "256/128/1, 3D", 256, 128, 1),
        Configuration(
            "F",
            "192/96/6, 2D stacks, float16, 50 e/A^2",
            192, 96, 6, stack2d=True, max_dose=50.0, switches=("--float16",),
        ),
        Configuration(
            "F all",
            "192/96/6, 2D stacks, float16, all frames",
            192, 96, 6, stack2d=True, switches=("--float16",),
        ),
        Configuration("G", "A with float16 tilt images", 192, 96, 4, image_type=FLOAT16),
        Configuration("V", "A with --average", 192, 96, 4, switches=("--average",)),
        Configuration(
            "P", "A with --prebin", 192, 96, 4, switches=("--prebin",), share=PREBIN_SHARE
        ),
        Configuration(
            "P 2D",
            "B with --prebin",
            192, 96, 4, stack2d=True, switches=("--prebin",), share=PREBIN_SHARE,
        ),
    )
}  # fmt: skip


#: How the name of a way ends whose particles are written.
WRITTEN = ", written"


@dataclass(frozen=True)
class Way:
    """How a job is run.

    Attributes
    ----------
    threads, ranks : int
        Threads are those of each rank.
    writing : bool
        Whether particles are written.
    tomograms : int
        That the particles are divided between.
    """

    threads: int
    ranks: int = 1
    writing: bool = False
    tomograms: int = 1

    @property
    def name(self) -> str:
        """As in the tables."""
        workers = f"{self.ranks} ranks" if self.ranks > 1 else f"{self.threads} threads"
        if self.threads == self.ranks == 1:
            workers = "1 thread" if self.tomograms == 1 else f"1 thread, {self.tomograms} tomograms"
        return workers + WRITTEN if self.writing else workers

    @property
    def alone(self) -> Way:
        """The same job on one thread."""
        return Way(1, writing=self.writing, tomograms=self.tomograms)


ONE_THREAD, TWO_THREADS = Way(1), Way(2)
#: A tomogram a rank: few particles of a single one would all go to the same rank.
TWO_RANKS = Way(1, ranks=2, tomograms=2)
ONE_THREAD_WRITTEN, TWO_THREADS_WRITTEN = Way(1, writing=True), Way(2, writing=True)
WAYS = (
    ONE_THREAD,
    TWO_THREADS,
    TWO_RANKS.alone,
    TWO_RANKS,
    ONE_THREAD_WRITTEN,
    TWO_THREADS_WRITTEN,
)
