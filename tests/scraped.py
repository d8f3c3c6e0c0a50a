"""A page of metrics, read by the parser of Prometheus' own library."""

from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families


class Scraped:
    """`series`: each by its name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._values = {
            (sample.name, tuple(sorted(f"{name}={value}" for name, value in sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @property
    def series(self) -> set[tuple[str, tuple[str, ...]]]:
        return set(self._values)

    def has(self, name: str) -> bool:
        return any(each == name for each, _ in self._values)

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        return {labels: value for (each, labels), value in self._values.items() if each == name}

    def value(self, name: str, **labels: str) -> float:
        """Of the one series that has just these labels."""
        return self._values[name, _sorted(labels)]

    def sum(self, name: str, **labels: str) -> float:
        """Over all series that have these labels."""
        wanted = set(_sorted(labels))
        return sum(value for has, value in self.all(name).items() if wanted <= set(has))

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums for each value of a label."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self.all(name).items():
            sums[dict(each.split("=", 1) for each in labels)[label]] += value
        return dict(sums)

    def values(self, label: str) -> set[str]:
        """All values that a label has anywhere."""
        pairs = (each.split("=", 1) for _, labels in self._values for each in labels)
        return {value for name, value in pairs if name == label}


def _sorted(labels: dict[str, str]) -> tuple[str, ...]:
    return tuple(sorted(f"{name}={value}" for name, value in labels.items()))
