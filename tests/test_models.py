"""The table of presets: what each asks of a machine."""
import torch

from msk.cli import main
from msk.config import PRESETS
from msk.models import card


def test_the_table_names_every_preset_and_marks_licences_that_nobody_states(capsys):
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if line.split() and line.split()[0] in PRESETS}
    assert rows.keys() == PRESETS.keys()
    assert "! unstated" in rows["wantrack-1.3b"] and "!" not in rows["wan2.1-1.3b"]
    assert "CPU" in rows["tiny"] and "a GPU" in rows["wan2.2-5b"]


def test_a_card_counts_what_wantracks_makers_counted():
    """1,564,577,376 parameters with norm_added_q, which we leave out; 1.73 GB of keys and values for six frames."""
    c = card(PRESETS["wantrack-1.3b"])
    assert c.parameters + 30 * 1536 == 1_564_577_376 and c.gpu and c.licence == "unstated"
    weights = (c.parameters + 11.3e6) * 2 / 2**30
    assert 2 * 1.7 * 1e9 / 2**30 < c.memory_gib - weights < 2 * 1.9 * 1e9 / 2**30   # the cache, and the past made of it
    assert c.disk_gib > 13 and torch.get_default_device().type == "cpu"
