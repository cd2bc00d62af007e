"""The main job, from AudioSet's CSV files to a trained model."""

import dataclasses

from ast_model.tracking.server import connect, tracking_uri
from ast_model.training.checks import check_ranks
from jobs.command_line.cli import resolve_root
from jobs.command_line.notifications import Summary, notifying
from jobs.command_line.run_names import new_run_name
from jobs.preprocessing.miniature_media import with_miniature_media
from jobs.preprocessing.tracked import check_all_made, preprocess_tracked, summarise
from jobs.training.initial_weights import open_initial_weights
from jobs.training.ray_train import train_on_ray
from jobs.training.runs import begin_run, end_run_on_exit, resume_run
from jobs.training.settings import AudioSetConfig
from jobs.training.summary import RunSummary, print_report
from jobs.training.training_clips import check_selection, select_training_clips
from pipeline.cluster.session import ray_session
from pipeline.preprocess import PreprocessReport
from pipeline.store.storage import Store


def audioset(config: AudioSetConfig) -> None:
    """Preprocess missing clips, train on the snapshot, and report."""
    with notifying(config.notify, "audioset") as summary:
        _audioset(config, summary)


def _audioset(config: AudioSetConfig, summary: Summary) -> None:
    check_ranks(config.train, config.ray.num_workers[1])
    check_selection(config.selection)
    store = Store(resolve_root(config.root))
    config = dataclasses.replace(config, train=open_initial_weights(config.train, config.model, config.resume))
    connect(store)  # detect an unreachable tracking server before hours of fetching
    with ray_session():
        if config.resume:
            job = resume_run(config.resume, store, config)
            report = PreprocessReport()
        else:
            run = new_run_name(config.preset)
            with with_miniature_media(config.data, store) as data:
                snapshot, report = preprocess_tracked(data, store, run)
            summary |= summarise(snapshot, report)
            job = begin_run(config, select_training_clips(snapshot, config.selection, config.train), run)
        summary |= {"run": job.run, "snapshot": job.snapshot.snapshot_id}
        with end_run_on_exit(job):
            history = train_on_ray(job, config.ray)
    summary["metrics"] = history[-1]
    print_report(RunSummary(job.snapshot, report, job.run, history, config.train.eval_split, tracking_uri(store)))
    # Fail only after training. Training on the available clips is useful, but a scheduler must notice missing shards.
    check_all_made(report)
