"""The cluster file is one that the installed Ray takes."""

from pathlib import Path

import yaml


def test_ray_accepts_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    path = Path(__file__).resolve().parents[1] / "cluster.yaml"
    validate_config(prepare_config(yaml.safe_load(path.read_text())))
