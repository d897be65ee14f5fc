"""The training recipes: each flag exists, each number can be set, and the DeepSpeed files are valid.

The scripts run for real with ``DRY_RUN=1``; what they print is parsed with LLaVA's dataclasses, ours mixed in.
"""

import json
import os
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import HfArgumentParser
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
RECIPES = sorted(path.name for path in SCRIPTS.glob("*.sh") if "export RECIPE=" in path.read_text(encoding="utf-8"))
ZERO_FILES = sorted(path.name for path in SCRIPTS.glob("*.json"))
REQUIRED = {"BASE": "base-model", "DATA": "train.json", "IMAGES": "images", "NUM_GPUS": "1"}  # not this machine's GPUs


def run_script(name, *arguments, cwd=None, **variables):
    """The script with only these of its variables set; nothing of the caller's CUDA or recipe settings leaks in."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV") if key in os.environ}
    command = ["bash", str(SCRIPTS / name), *arguments]
    return subprocess.run(command, env={**kept, **variables}, cwd=cwd, capture_output=True, text=True, timeout=60)


def command_of(name, *arguments, **variables):
    """The words of the command that a recipe would start."""
    done = run_script(name, *arguments, DRY_RUN="1", **{**REQUIRED, **variables})
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def flag(command, name):
    """The value of a flag; the last one wins, as in argparse."""
    places = [place for place, word in enumerate(command) if word == f"--{name}"]
    return command[places[-1] + 1] if places else None


@pytest.fixture(scope="module")
def parser():
    from llava.train import train

    from llava_ultra_ext.train.program import extended_arguments

    ours = extended_arguments(train)
    return HfArgumentParser((ours["ModelArguments"], ours["DataArguments"], train.TrainingArguments))


def test_every_recipe_is_found():
    assert RECIPES == ["finetune.sh", "finetune_lora.sh", "pretrain.sh"]
    assert ZERO_FILES == ["zero2.json", "zero3.json", "zero3_offload.json"]


@pytest.mark.parametrize("script", RECIPES)
def test_flags_are_those_of_the_dataclasses(script, parser):
    command = command_of(
        script, ADR_LAYERS="4", FRAME_SCORES="s.jsonl", MAX_FRAMES="9", PROJECTOR_LR="2e-5", TF32="True"
    )
    at = next(place for place, word in enumerate(command) if word.endswith("llava/train/train_mem.py"))
    assert command[:at] == ["deepspeed", "--num_gpus", "1"]
    flags = command[at + 1 :]
    known = parser._option_string_actions  # argparse would also take the beginning of a flag's name
    assert [word for word in flags if word.startswith("--") and word not in known] == []
    values = parser.parse_args(flags)  # exits on a value of the wrong type
    assert (values.vision_tower, values.sam_image_size) == ("sam_clip_fused", 768)
    assert (values.max_frames, values.adr_layers, values.tf32) == (9, 4, True)
    assert Path(values.deepspeed).is_file()
    ours = HfArgumentParser(parser.dataclass_types[:2])
    ours.parse_args_into_dataclasses(flags, return_remaining_strings=True)  # __post_init__ checks choices and ranges


def test_the_papers_settings_are_the_defaults(parser):
    stage1, stage2 = command_of("pretrain.sh"), command_of("finetune_lora.sh")
    for command in (stage1, stage2):
        assert float(flag(command, "learning_rate")) == 1e-3
        per_device, steps = flag(command, "per_device_train_batch_size"), flag(command, "gradient_accumulation_steps")
        assert int(per_device) * int(steps) == 16
        assert flag(command, "mm_projector_type") == "linear"
        assert flag(command, "clip_tower") == "openai/clip-vit-large-patch14-336"
        assert flag(command, "sam_tower") == "facebook/sam-vit-large"
        assert flag(command, "optim") == "adamw_torch"
    assert (flag(stage1, "tune_mm_mlp_adapter"), flag(stage1, "version")) == ("True", "ultra_plain_zh")
    assert flag(stage1, "pretrain_mm_mlp_adapter") is None
    assert (flag(stage2, "lora_enable"), flag(stage2, "lora_r"), flag(stage2, "lora_alpha")) == ("True", "128", "256")
    assert (flag(stage2, "adr_strategy"), flag(stage2, "version")) == ("likelihood", "ultra_v1_zh")
    assert flag(stage2, "pretrain_mm_mlp_adapter") == flag(stage1, "output_dir") + "/mm_projector.bin"
    assert flag(command_of("finetune.sh"), "lora_enable") is None


def test_one_weight_shape_in_both_stages():
    """mm_projector.bin of stage 1 holds w of eq. 3; stage 2 could not load it with another index."""
    shapes = {flag(command_of(script), "adr_weights") for script in RECIPES}
    assert len(shapes) == 1 and None not in shapes


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("BASE", "m", "model_name_or_path"),
        ("DATA", "d.json", "data_path"),
        ("IMAGES", "pictures", "image_folder"),
        ("OUT", "out/llava-x", "output_dir"),
        ("VERSION", "ultra_chatml_zh", "version"),
        ("LR", "2e-4", "learning_rate"),
        ("PROJECTOR_LR", "2e-5", "mm_projector_lr"),
        ("EPOCHS", "7", "num_train_epochs"),
        ("PROJECTOR", "mlp2x_gelu", "mm_projector_type"),
        ("CLIP_TOWER", "c", "clip_tower"),
        ("SAM_TOWER", "s.pth", "sam_tower"),
        ("SAM_IMAGE_SIZE", "1024", "sam_image_size"),
        ("SAM_TOKEN_MERGE", "pool", "sam_token_merge"),
        ("SAM_SELECT_FEATURE", "last_hidden", "sam_select_feature"),
        ("SAM_TRAINABLE", "neck", "sam_trainable"),
        ("FUSION_ALPHA", "channel", "mm_fusion_alpha"),
        ("ENCODER_BATCH", "2", "encoder_batch_size"),
        ("ADR_STRATEGY", "attention", "adr_strategy"),
        ("ADR_WEIGHTS", "token", "adr_weights"),
        ("ADR_TOP_K", "2", "adr_top_k"),
        ("ADR_LAYERS", "3", "adr_layers"),
        ("ADR_TEMPERATURE", "1.5", "adr_temperature"),
        ("ADR_LOSS_WEIGHT", "0.1", "adr_loss_weight"),
        ("ADR_WARMUP", "40", "adr_warmup"),
        ("ADR_SELECT_BY", "teacher", "adr_select_by"),
        ("FRAME_SCORES", "scores.jsonl", "frame_scores"),
        ("MAX_FRAMES", "12", "max_frames"),
        ("ON_BAD_SAMPLE", "skip", "on_bad_sample"),
        ("BF16", "True", "bf16"),
        ("FP16", "True", "fp16"),
        ("TF32", "True", "tf32"),
        ("WEIGHT_DECAY", "0.1", "weight_decay"),
        ("WARMUP_RATIO", "0.1", "warmup_ratio"),
        ("SCHEDULE", "linear", "lr_scheduler_type"),
        ("MAX_LENGTH", "4096", "model_max_length"),
        ("GRADIENT_CHECKPOINTING", "False", "gradient_checkpointing"),
        ("SAVE_STEPS", "3", "save_steps"),
        ("SAVE_TOTAL_LIMIT", "1", "save_total_limit"),
        ("LOGGING_STEPS", "10", "logging_steps"),
        ("LOADER_WORKERS", "0", "dataloader_num_workers"),
        ("SEED", "1", "seed"),
        ("REPORT_TO", "tensorboard", "report_to"),
        ("LORA_R", "8", "lora_r"),
        ("LORA_ALPHA", "16", "lora_alpha"),
        ("LORA_DROPOUT", "0", "lora_dropout"),
    ],
)
def test_every_value_is_a_variable(variable, value, name):
    assert flag(command_of("finetune_lora.sh", **{variable: value}), name) == value


def test_flags_of_the_command_line_come_last_and_win():
    assert (
        flag(command_of("pretrain.sh", "--adr_strategy", "feature", ADR_STRATEGY="first"), "adr_strategy") == "feature"
    )


def test_a_list_of_encoders_names_them_itself():
    command = command_of("pretrain.sh", VISION_TOWER="fused:clip=a,dinov2=b")
    assert flag(command, "vision_tower") == "fused:clip=a,dinov2=b"
    assert [word for word in command if word.startswith(("--clip", "--sam"))] == []


@pytest.mark.parametrize(
    ("variables", "launch", "batch", "steps"),
    [
        ({"NUM_GPUS": "4"}, "deepspeed --num_gpus 4", "4", "1"),
        ({"NUM_GPUS": "2", "PER_DEVICE_BATCH": "1"}, "deepspeed --num_gpus 2", "1", "8"),
        ({"NUM_GPUS": "2", "DEEPSPEED_ARGS": "--master_port 1"}, "deepspeed --num_gpus 2 --master_port 1", "8", "1"),
        ({"LAUNCH": "torchrun --nnodes 2", "RANKS": "8"}, "torchrun --nnodes 2", "2", "1"),
    ],
)
def test_batch_is_that_of_all_processes(variables, launch, batch, steps):
    command = command_of("pretrain.sh", **variables)
    assert command[: len(launch.split())] == launch.split()
    assert flag(command, "per_device_train_batch_size") == batch
    assert flag(command, "gradient_accumulation_steps") == steps


def test_several_machines(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# slots=64\nnode1 slots=4\nnode2 slots=4\n")
    command = command_of("pretrain.sh", HOSTFILE=str(hosts))
    assert command[:3] == ["deepspeed", "--hostfile", str(hosts)]
    assert flag(command, "per_device_train_batch_size") == "2"


def test_slurm_example_starts_torchrun_on_every_node(tmp_path):
    for name, body in (("srun", 'shift; exec "$@"'), ("scontrol", "printf 'node7\\nnode8\\n'")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    project = tmp_path / "project"
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/activate").write_text("")
    (project / "scripts").symlink_to(SCRIPTS)
    slurm = {"SLURM_SUBMIT_DIR": str(project), "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "11"}
    slurm |= {"SLURM_JOB_NODELIST": "node[7-8]", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = command_of("slurm_finetune.sbatch", **slurm)
    assert command[:5] == ["torchrun", "--nnodes", "2", "--nproc_per_node", "4"]
    assert command[command.index("--rdzv_endpoint") + 1] == "node7:20011"
    assert flag(command, "per_device_train_batch_size") == "2"


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("pretrain.sh", {"BASE": ""}, "pretrain.sh: BASE is not set; scripts/train.sh lists the variables"),
        ("pretrain.sh", {"DATA": "no.json"}, "pretrain.sh: DATA=no.json: no such file"),
        ("pretrain.sh", {"DATA": __file__, "IMAGES": "no"}, "pretrain.sh: IMAGES=no: no such folder"),
        ("pretrain.sh", {"DRY_RUN": "1", "NUM_GPUS": "3"}, "BATCH=16 is not a multiple of PER_DEVICE_BATCH=5 times 3"),
        ("pretrain.sh", {"DRY_RUN": "1", "ZERO": "zero9"}, "ZERO=zero9: no such file; use zero2, zero3"),
        ("pretrain.sh", {"DRY_RUN": "1", "HOSTFILE": os.devnull}, f"HOSTFILE={os.devnull}: no such file"),
        ("finetune_lora.sh", {"STAGE1": "no"}, "finetune_lora.sh: STAGE1=no has no mm_projector.bin; run pre"),
    ],
)
def test_bad_settings_stop_with_one_line(script, variables, message, tmp_path):
    done = run_script(script, cwd=tmp_path, **{**REQUIRED, **variables})
    assert done.returncode != 0
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def filled(path, hidden_size=65):
    """A DeepSpeed file after transformers has replaced "auto", for a model whose size is not a multiple of ten."""
    config = HfTrainerDeepSpeedConfig(str(path))
    arguments = SimpleNamespace(get_warmup_steps=lambda steps: 0)
    config.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=hidden_size)), 10)
    return config.config


@pytest.mark.parametrize("name", ZERO_FILES)
def test_zero_file_is_accepted_by_deepspeed(name):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    given = filled(SCRIPTS / name)
    zero = given["zero_optimization"]
    assert zero["stage"] == (2 if "zero2" in name else 3)
    assert [key for key, value in zero.items() if isinstance(value, float)] == []
    parsed = DeepSpeedZeroConfig(**zero)
    if zero["stage"] == 3:
        assert parsed.gather_16bit_weights_on_model_save  # else a ZeRO-3 run saves empty weights
    if "offload" in name:
        assert parsed.offload_optimizer.device == parsed.offload_param.device == "cpu"
        # LLaVA's trainer makes the optimizer (mm_projector_lr has its own group): the file may not define another.
        assert "optimizer" not in given and given["zero_force_ds_cpu_optimizer"] is False


def test_auto_prefetch_size_is_what_deepspeed_rejects(tmp_path):
    """Why the files differ from LLaVA's: transformers makes .9 * hidden_size ** 2 of "auto"."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = json.loads((SCRIPTS / "zero3.json").read_text())
    config["zero_optimization"]["stage3_prefetch_bucket_size"] = "auto"
    (tmp_path / "auto.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="stage3_prefetch_bucket_size"):
        DeepSpeedZeroConfig(**filled(tmp_path / "auto.json")["zero_optimization"])
