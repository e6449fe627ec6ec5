"""What can be done with a finished run: evaluate, generate, export and show it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from diffalign.evaluate.generate import Noise, Sampling, generate
from diffalign.evaluate.report import load_report, show_report, write_report
from diffalign.evaluate.seeds import excelling
from diffalign.personalize.wanted import Wanted, adapter_of, attach_wanted, base_of, check_wanted
from diffalign.policy import Policy, load_policy
from diffalign.policy.export import LORA_FILE, export_policy, merge
from diffalign.policy.guidance import is_guidance, read_guidance
from diffalign.policy.lora import AdapterConfig, load_into
from diffalign.policy.precision import DTYPES, best_device
from diffalign.train.align import load_any
from diffalign.train.blocks import RunConfig
from diffalign.train.config import TrainConfig
from diffalign.train.finish import further_pictures, paired_evaluation
from diffalign.train.progress import Screen
from diffalign.train.run import RunFolder, read_config
from diffalign.train.shown import from_export


def open_run(run: Path) -> tuple[RunConfig, Policy]:
    """Recipe and policy of a finished run, with its exported weights, in fp32 on the CPU.

    Raises:
        FileNotFoundError: no run there, or no exported weights.
    """
    config = load_any(read_config(run))
    export = RunFolder(root=run).export
    if config.policy.adapter is None:
        part = export / "unet" if (export / "unet").exists() else export / "transformer"
        return config, _full_policy(config, part)
    if not (export / LORA_FILE).exists():
        raise FileNotFoundError(
            f"{export} holds no weights: the run did not finish; go on with --resume {run}"
        )
    policy = _load(config, replace(config.policy.adapter, init_from=str(export)))
    policy.set_guidance(config.policy.guidance)
    return config, policy


def open_for_pictures(run: Path) -> tuple[RunConfig, Policy]:
    """Like ``open_run``, on the best device and in the recipe's precision, as the run made its pictures."""
    config, policy = open_run(run)
    return config, policy.to(best_device(), DTYPES[config.precision])


def _load(config: RunConfig, adapter: AdapterConfig | None) -> Policy:
    policy = load_policy(
        config.policy.model,
        adapter,
        text_length=config.policy.text_length,
        allow_download=config.policy.allow_download,
    )
    policy.set_long_prompts(config.policy.long_prompts)
    return policy


def _full_policy(config: RunConfig, part: Path) -> Policy:
    if not part.exists():
        raise FileNotFoundError(
            f"{part.parent} holds no weights: the run did not finish; go on with --resume"
        )
    policy = _load(config, None)
    policy.set_reference("start")
    trained = type(policy.denoiser).from_pretrained(part)  # type: ignore[attr-defined]
    policy.denoiser.load_state_dict(trained.state_dict())
    return policy


def evaluate_again(run: Path, prompts: int, seeds: int) -> Path:
    """Evaluate with other numbers; the report goes beside the first one, under a name of its own."""
    config, policy = open_for_pictures(run)
    options = replace(
        config.evaluate, prompts=prompts or config.evaluate.prompts, seeds=seeds or config.evaluate.seeds
    )
    screen = Screen(True, 1, 1, 1)
    evaluation = paired_evaluation(replace(config, evaluate=options), policy, screen)
    report = evaluation.report()
    show_report(report, screen.wide())
    return write_report(run / f"report-{report['prompts']}x{report['seeds_per_prompt']}.json", report)


def gallery_again(run: Path, output: Path, prompts: int, *, title: str = "", overwrite: bool = False) -> Path:
    """Write a gallery of the first ``prompts`` prompts (0 = all), under the whole report, to a new file.

    Raises:
        FileExistsError: there is a file at ``output`` and ``overwrite`` is not set.
    """
    from diffalign.gallery.write import write_gallery

    config, policy = open_for_pictures(run)
    options = replace(config.evaluate, prompts=prompts or config.evaluate.prompts)
    config = replace(config, evaluate=options)
    evaluation = paired_evaluation(config, policy, Screen(True, 1, 1, 1))
    if isinstance(config, TrainConfig) and config.people is not None:
        make = further_pictures(config, policy, evaluation)
        evaluation = evaluation.beside(from_export(policy, run / "export", config.people, make))
    report = load_report(run / "report.json")
    return write_gallery(output, evaluation.items(), report, title or run.name, overwrite=overwrite)


def export_again(run: Path, output: Path, merged: bool, kohya: bool) -> Path:
    """Export to a new folder.

    Raises:
        FileExistsError: ``output`` holds something.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty: choose a new folder")
    _, policy = open_run(run)
    return merge(policy, output) if merged else export_policy(policy, output, kohya=kohya)


def open_any(model: str, lora: str | None = None) -> Policy:
    """Policy for pictures of a pipeline, a run, or a run's export, also where that was moved.

    Raises:
        FileNotFoundError: nothing of the three.
        ValueError: a LoRA beside a run's own, or an export that does not say what model it is of.
    """
    folder = Path(model)
    own = folder.name == "export" and (folder.parent / "config.yaml").exists()
    run = folder.parent if own else folder
    weights = (folder / LORA_FILE).exists() and not (folder / "model_index.json").exists()
    if lora is not None and (weights or (run / "config.yaml").exists()):
        raise ValueError(f"{model} has a LoRA of its own: leave out --lora {lora}, or name the base model")
    if (run / "config.yaml").exists():
        return open_for_pictures(run)[1]
    policy = load_policy(base_of(adapter_of(folder)) if weights else model).to(best_device())
    source = model if weights else lora
    if source is not None and is_guidance(source):
        policy.set_guidance(read_guidance(source))
    elif source is not None:
        load_into(policy.pipeline, source)
    return policy


def _for_whom(policy: Policy, model: str, wanted: Wanted, users: Path | None) -> None:
    """Attach people to the policy's pipeline, where somebody is wanted."""
    if not wanted.somebody:
        if users is not None:
            raise ValueError(f"--users {users} holds people, and nobody is named: add --user or --direction")
        return
    if policy.guidance is not None and wanted.guidance is not None:
        raise ValueError("guidance by a second model has no third branch: leave out --user-guidance")
    attach_wanted(policy.pipeline, users or model, wanted)


def generate_to(
    output: Path,
    model: str,
    prompts: Sequence[str],
    lora: str | None,
    seeds: int,
    steps: int,
    guidance: float,
    seeds_from: Path | None = None,
    wanted: Wanted | None = None,
    users: Path | None = None,
) -> list[Path]:
    """Pictures of any pipeline as PNG files, named by prompt number and seed, each with its prompt in a file
    NNNN-S.txt beside it, so that the folder can be scored and paired as it is; existing files stay.

    With ``seeds_from``, a report.json, they start from the noise of the seeds that excel in it, of which
    ``seeds`` is then the most that are taken. ``model`` may be a run or its export too. Where somebody is
    ``wanted``, their adapter is that of the run or export, or at ``users``.

    Raises:
        FileNotFoundError: no model, or no adapter.
        FileExistsError: a picture or a prompt is there already.
        ReportError: no seed excels in the report.
        UsersError: somebody unknown.
        ValueError: a LoRA beside a run, people without a name, or see ``Wanted.put_on``.
    """
    numbers = list(range(seeds)) if seeds_from is None else excelling(seeds_from)[:seeds]
    wanted = wanted or Wanted()
    if wanted.somebody:
        check_wanted(adapter_of(users or model), wanted)
    policy = open_any(model, lora)
    _for_whom(policy, model, wanted, users)
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{i:04d}-{s}.png" for i in range(len(prompts)) for s in numbers]
    taken = [f for p in paths for f in (p, p.with_suffix(".txt")) if f.exists()]
    if taken:
        raise FileExistsError(f"{taken[0]} exists: choose another --output")
    noise: Noise = "own" if seeds_from is None else "shared"
    pictures = generate(policy, prompts, numbers, Sampling(steps=steps, guidance=guidance, noise=noise))
    texts = [prompt for prompt in prompts for _ in numbers]
    for path, picture, prompt in zip(paths, pictures.flatten(0, 1), texts, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
        path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
    return paths
