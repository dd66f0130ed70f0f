"""What `diffalign.align` refuses before anything is loaded or written."""

from __future__ import annotations

import pytest

from diffalign.core.errors import ConfigError
from diffalign.train.align import align


@pytest.mark.parametrize(
    ("data", "options", "facts"),
    [
        (None, {}, ["`data`", "NoneType"]),
        (3, {}, ["`data`", "int"]),
        ({"prompt": ["a"]}, {}, ["`data`", "dict"]),
        ([1, 2], {}, ["`data`", "entry 0", "int"]),
        ("votes", {"output_dir": None}, ["`output_dir`", "None"]),
        ("votes", {"rank": 8.5}, ["diffalign.align", "`rank`", "8.5"]),
        ("votes", {"lr": 1}, ["diffalign.align", "`lr`", "`learning_rate`"]),
        ("votes", {"seed": -1}, ["`seed`", "-1"]),
        ("votes", {"transforms": "orient"}, ["`transforms`", "[orient]"]),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name_and_leaves_nothing_behind(tmp_path, data, options, facts):
    with pytest.raises(ConfigError) as refusal:
        align("assets/tiny-sd", data, **{"output_dir": tmp_path / "run", **options})
    assert [fact for fact in facts if fact not in str(refusal.value)] == []
    assert not list(tmp_path.rglob("*.arrow"))
