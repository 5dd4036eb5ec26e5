"""The table of predictions, where paths are longer than the terminal is wide."""

from patchmerger.prediction.outcomes import PredictedClass, Prediction
from patchmerger.reports.predict import show_predictions


def test_of_a_long_path_the_end_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = (PredictedClass("warplane, military plane", 895, 0.9), PredictedClass("wing", 908, 0.1))
    show_predictions([Prediction(f"/data/{'folder/' * 20}picture.png", found), Prediction("cat.jpg", found)])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0][:1] for line in lines if ".png" in line] == ["…"]
    assert sum("picture.png" in line and "military plane" in line and "90.0" in line for line in lines) == 1
    assert sum("cat.jpg" in line for line in lines) == 1
