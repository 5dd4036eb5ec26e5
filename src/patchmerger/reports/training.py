"""What ``patchmerger fit`` and ``patchmerger test`` print."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def show_fit(results: dict[str, Any]) -> None:
    """Print the result of ``patchmerger fit``."""
    console = Console()
    images = results["images"]
    console.print(images["description"])
    for bad in images["skipped"]:
        console.print(f"  left out: {bad}")
    console.print(
        f"test {results['metric']}: [bold]{100 * results['test_metric']:.2f}%[/bold] on {images['test']:,} images; "
        f"{results['flops'] / 1e9:.3g} GFLOPs an image, {results['params']:,} parameters, "
        f"predicted speed-up {results['predicted_speedup']:.2f}; trained for {results['seconds']:.0f} s "
        f"({results['images_per_second']:,.0f} images/s)"
    )
    console.print(f"Model and logs: {results['folder']}", soft_wrap=True)


def show_evaluation(result: dict[str, Any]) -> None:
    """Print the result of ``patchmerger test``."""
    console = Console()
    console.print(result["data"])
    for name, value in result.get("per_class", {}).items():
        console.print(f"  {name}: {100 * value:.2f}%")
    console.print(
        f"{result['split']} {result['metric']}: [bold]{100 * result['value']:.2f}%[/bold] "
        f"on {result['images']:,} images"
    )
