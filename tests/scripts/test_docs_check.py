"""What the check of the documentation reads in a page; it runs nothing here."""

from __future__ import annotations

import textwrap

from scripts.docs_check import ROOT, all_pages, examples, quotes

PAGE = textwrap.dedent(
    """\
    # A page

    ```bash
    # a comment
    first --flag 1   # and another
    second \\
      --flag 2

    third
    ```

    <!-- not run: it takes
    a week -->
    ```python
    import diffalign

    diffalign.align()
    ```

    ```yaml
    beta: 500
    ```
    """
)


def test_each_command_of_a_bash_block_is_one_example_with_its_line():
    shown = [(example.line, example.text) for example in examples("page.md", PAGE) if example.language == "bash"]
    assert shown == [(5, "first --flag 1   # and another"), (6, "second \\\n  --flag 2"), (9, "third")]


def test_a_python_block_is_one_example_and_a_comment_says_why_it_is_left_out():
    (block,) = (example for example in examples("page.md", PAGE) if example.language == "python")
    assert block.reason == "it takes a week"
    assert block.text == "import diffalign\n\ndiffalign.align()\n"


def test_the_comment_before_one_block_says_nothing_of_the_next():
    page = "<!-- not run: one -->\n```bash\na\n```\n\n```bash\nb\n```\n\n<!-- not run: two -->\n```bash\nc\n```\n"
    assert [example.reason for example in examples("page.md", page)] == ["one", None, "two"]


def test_pages_begin_with_the_readme_and_are_all_there():
    pages = all_pages(ROOT)
    assert pages[0] == "README.md"
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")} <= set(pages)


def test_a_quoted_message_may_stand_in_two_lines_of_the_source(tmp_path):
    (tmp_path / "a.py").write_text('raise E(\n    f"{name}: the `key` is "\n    f"not one of {table}"\n)\n')
    assert quotes("### ...: the key is not one of ...\n\n### the key is another\n", tmp_path) == ["the key is another"]
