"""A stage's jobs can be sent to another process, and are unchanged there."""

import pickle  # noqa: TID251 - as workers receive a job
from pathlib import Path

import world
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages import evaluate
from gradsieve.stages.jobs import training_job


def test_jobs_survive_pickling(tmp_path: Path) -> None:
    data = world.make(tmp_path / "inputs", rows=20)
    data["targets"][0]["test"] = data["targets"][0]["path"]
    recipe = world.recipe(data, train={}, evaluate={})
    context = Context(recipe, RunFolder(tmp_path / "run"), world.Listening())
    training = training_job(context)
    copied = pickle.loads(pickle.dumps(training))
    examples = context.targets[0].examples
    assert copied.template.try_encode_all(examples) == training.template.try_encode_all(examples)
    assert (copied.model, copied.settings) == (training.model, training.settings)
    task = evaluate.EvaluationTask("mine/base/seed-0", None, "")
    job = evaluate.evaluation_job(context, [task])
    assert {*job.questions["mine"].losses} == {"target_loss", "held_out_loss"}
    assert pickle.loads(pickle.dumps(job)).questions == job.questions
