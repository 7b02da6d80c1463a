"""What may be asked before a run: of its data, of rewards, and of what it will need."""

from typing import Any, ClassVar, TypedDict

from tuitune.session.request import RecipeData, Request, request


class SourceSummary(TypedDict):
    """One dataset of a mix; `weight` and `share` (of what is drawn) are None where it is only measured on."""

    name: str
    rows: int
    rows_estimated: bool
    weight: float | None
    share: float | None


class DataSummary(TypedDict):
    """`bytes` is None for a dataset of the Hub."""

    file: str
    kind: str
    format: str
    reason: str
    columns: dict[str, str]
    rows: int
    rows_estimated: bool
    bytes: int | None
    sources: list[SourceSummary]
    method: str
    """What the rows lend themselves to learn from, and in `method_reason` why, as a sentence."""
    method_reason: str


@request
class Summary(Request[DataSummary]):
    """What the recipe's dataset is; no file is read for longer than a moment."""

    command: ClassVar[str] = "summary"
    recipe: RecipeData


class MaskedRows(TypedDict):
    """Each row with its `tokens` (`id`, `text`, `trained`) and their numbers, or with its `error`."""

    rows: list[dict[str, Any]]


@request
class Rows(Request[MaskedRows]):
    """Rows `start` to `stop` of a dataset of the recipe, as they will be trained."""

    command: ClassVar[str] = "rows"
    recipe: RecipeData
    start: int
    stop: int
    source: int = 0


class UnusableRows(TypedDict):
    """Rows that cannot be used, with `source`, `row`, `error`, `code`, of the first `looked_at` of each dataset."""

    looked_at: int
    unusable: list[dict[str, Any]]


@request
class Unusable(Request[UnusableRows]):
    command: ClassVar[str] = "unusable"
    recipe: RecipeData
    among: int


class ColumnNames(TypedDict):
    """`columns`: each name with a value from the first rows; `mappable`: what they may be mapped to."""

    columns: dict[str, str]
    mappable: list[str]


@request
class Columns(Request[ColumnNames]):
    command: ClassVar[str] = "columns"
    recipe: RecipeData


class FoundDatasets(TypedDict):
    """`datasets`: each dataset's name, whether it is gated, and its downloads."""

    datasets: list[dict[str, Any]]


@request
class SearchDatasets(Request[FoundDatasets]):
    """Datasets of the Hugging Face Hub, by words."""

    command: ClassVar[str] = "search_datasets"
    words: str


class Splits(TypedDict):
    """Each configuration of a Hub dataset with its splits."""

    configs: dict[str, list[str]]


@request
class DatasetSplits(Request[Splits]):
    command: ClassVar[str] = "dataset_splits"
    name: str
    revision: str = ""


@request
class Audit(Request[dict[str, Any]]):
    """Every problem in the data (`tuitune.audit.scan.Audit`); parts tell how many rows are `done` of about `total`."""

    command: ClassVar[str] = "audit"
    recipe: RecipeData


@request
class PreviewRewards(Request[dict[str, Any]]):
    """Answers of the model as it is, with their rewards (`tuitune.train.reward_preview`); parts tell the `loading`."""

    command: ClassVar[str] = "preview_rewards"
    recipe: RecipeData
    prompts: int = 4


@request
class Estimate(Request[dict[str, Any]]):
    """What will be trained, in how many steps and how much memory (`tuitune.plan.estimate.Estimate`).

    `runs` is the folder in which the run would be kept, the default one if None. What its `exports` need is looked at
    here alone: what the Hub says of its repository is asked by HubAccess.
    """

    command: ClassVar[str] = "estimate"
    recipe: RecipeData
    runs: str | None = None


class Access(TypedDict):
    """`refusal`: the sentence that says why the repository cannot be written to; None where it can."""

    refusal: str | None


@request
class HubAccess(Request[Access]):
    """Whether a repository of the Hub may be written to; asked beside other jobs, which do not wait for the Hub.

    The Hub is asked once for each repository, visibility and token; with `again` once more where it refused.
    """

    command: ClassVar[str] = "hub_access"
    repository: str | None
    public: bool
    again: bool = False
