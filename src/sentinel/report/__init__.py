"""What is told: HTML, Markdown, charts, terminal tables, recommendations. A call is `report` itself."""

from sentinel.verbs import make_callable

make_callable(__name__)
