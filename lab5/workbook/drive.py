"""Driving the robot: the learned model as a simulator that a user steers, beside what the robot would have done."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import ipywidgets
import numpy as np
import torch

from lab5.data import Pack, to_video
from lab5.evaluation import predict
from lab5.metrics import psnr
from lab5.robot.simulator import REACH, Robot, sequence_rng
from lab5.workbook import figures
from lab5.workbook.run import SIMULATION_SEED, Run
from lab5.workbook.widgets import Futures, Stage, as_pictures, checkbox, curve, range_of, slider, stack, watch

ACTION = 4                                      # numbers of a condition that are the action; the rest is the position
AHEAD = 5                                       # predicted frames that are shown ahead
LONGEST = 28                                    # steps of a drive
# The pad: a sign, where the arm goes, and the signs of dx and dy, which point to the viewer and to the right
PAD = (("↖", "away and left", (-1, -1)), ("↑", "away", (-1, 0)), ("↗", "away and right", (-1, 1)),
       ("←", "left", (0, -1)), ("•", "stay", (0, 0)), ("→", "right", (0, 1)),
       ("↙", "near and left", (1, -1)), ("↓", "near", (1, 0)), ("↘", "near and right", (1, 1)))


def steerable(lab: Run) -> bool:
    """Whether the model is conditioned on actions and positions."""
    return lab.config.condition != "none" and lab.pack("test").condition_dim > ACTION


class Motion:
    """Where an action takes the end-effector: p(t+1) = A [a(t), p(t), 1], fitted to a split by least squares.

    The model is conditioned on positions as well as actions, and for a new drive no positions are recorded.
    """

    def __init__(self, pack: Pack) -> None:
        rows = np.asarray(pack.conditions[:512], dtype=np.float64)                              # (N, T, 7)
        before, after = rows[:, :-1].reshape(-1, rows.shape[-1]), rows[:, 1:, ACTION:].reshape(-1, 3)
        self._map = np.linalg.lstsq(np.column_stack([before, np.ones(len(before))]), after, rcond=None)[0]
        self._low, self._high = after.min(axis=0), after.max(axis=0)

    def __call__(self, position: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The next position (3,), within the range of the split."""
        return (np.concatenate([action, position, [1.0]]) @ self._map).clip(self._low, self._high)


@functools.lru_cache(64)
def real_frames(index: int, actions: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """What the simulated robot of a test sequence does under actions: frames (1 + len(actions), 64, 64, 3) uint8."""
    robot = Robot(sequence_rng(SIMULATION_SEED, "test", index))
    frames = [robot.frame()]
    for action in actions:
        robot.step(action)
        frames.append(robot.frame())
    return np.stack(frames)


class Drive:
    """The user steers, and the model predicts what follows, each frame from its prediction before.

    The first frames are a test sequence's. Moving a slider shows the next frames at once, as if the action were held;
    a button takes the step. Raises ValueError for a model without actions, which cannot be steered.
    """

    def __init__(self, lab: Run, index: int) -> None:
        self.lab, self.index, self.futures, self.actions = lab, index, Futures(lab), []
        if not steerable(lab):
            raise ValueError(f"{lab.folder}: this model is not conditioned on actions and positions, so there is "
                             "nothing to steer; open a run whose `condition` is not none")
        frames, condition = self.futures.window(index)
        self.n_past = self.futures.config.n_past
        self.context, self.rows = frames[:self.n_past], condition[:self.n_past, 0].double().numpy()  # rows (n_past, 7)
        self.motion = Motion(lab.pack("test"))                  # the arm alone, which any split shows
        self.noise = torch.randn(self.n_past + LONGEST + AHEAD, 1, self.futures.model.noise_size,
                                 generator=torch.Generator().manual_seed(1))
        real = self.real([]) if self.futures.pack.simulated else np.float64("inf")
        self.robot = bool(np.abs(real - as_pictures(self.context[:, 0]).astype(float)).mean() < 1)  # the same set
        self._build()
        self.draw()

    # What follows from actions ---------------------------------------------------------------------------

    def conditions(self, actions: list[np.ndarray]) -> np.ndarray:
        """Conditions (n_past + len(actions), 7): the context's, then the actions and where they lead.

        The last frame's own action, which would lead beyond it, is the one before it.
        """
        rows, position = [*self.rows[:-1]], self.rows[-1, ACTION:]
        for action in actions:
            rows.append(np.concatenate([action, position]))
            position = self.motion(position, action)
        return np.stack([*rows, np.concatenate([actions[-1], position])])

    def imagine(self, actions: list[np.ndarray]) -> np.ndarray:
        """What the model predicts under the actions: frames (n_past + len(actions), H, W, C) uint8."""
        context = as_pictures(self.context[:, 0])
        if not actions:
            return context
        condition = torch.from_numpy(self.conditions(actions)).float()[:, None]
        noise = self.noise[:len(condition) - 1] * float(self.sampled.value)
        future = predict(self.futures.model, self.context, condition, noise)
        return np.concatenate([context, as_pictures(future[:, 0])])

    def real(self, actions: list[np.ndarray]) -> np.ndarray:
        """What the simulated robot does under the actions, after the context: frames like those of `imagine`."""
        return real_frames(self.index, tuple(map(tuple, [*self.rows[:-1, :ACTION], *actions])))

    # The controls ----------------------------------------------------------------------------------------

    def _build(self) -> None:
        names = ("the model", "the simulated robot", "|difference|") if self.robot else ("the model",)
        self.stage, self.ahead = Stage(names), Stage([f"+{step}" for step in range(1, AHEAD + 1)], small=True)
        self.dx, self.dy = (slider(-REACH, REACH, 0, f"{name} [m]", 0.006, ".3f") for name in ("dx", "dy"))
        self.lift, self.grip, self.sampled = (checkbox(name) for name in ("lift", "close the gripper", "draw z"))
        self.steps = [self._button(text, why, functools.partial(self.step, *move)) for text, why, move in PAD]
        self.go = self._button("step", "take the step that the sliders say", self.step)
        self.undo = self._button("undo", "take the last step back", self.take_back)
        self.reset = self._button("reset", "back to the context frames", functools.partial(self.take_back, True))
        self.save = self._button("save GIF", "keep the drive as a GIF", self.keep)
        self.curve, self.words = ipywidgets.HTML(), ipywidgets.HTML()
        watch([self.dx, self.dy, self.lift, self.grip], self.look_ahead)
        watch([self.sampled], self.draw)
        pad = ipywidgets.GridBox(self.steps, layout={"grid_template_columns": "repeat(3, 3.4em)", "flex": "none"})
        rows = [self.lift, self.grip, self.sampled], [self.go, self.undo, self.reset, self.save]
        steering = ipywidgets.HBox([pad, ipywidgets.VBox([self.dx, self.dy, *map(ipywidgets.HBox, rows)])])
        self.widget = stack(self.stage, steering, ipywidgets.HTML("The next frames, if this action is held:"),
                            self.ahead, self.words, self.curve)

    def _button(self, text: str, tooltip: str, action: Callable[[], None]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=text, tooltip=tooltip, layout={"width": "auto", "padding": "0 .9em"})
        button.on_click(lambda _: action())
        return button

    @property
    def action(self) -> np.ndarray:
        """The action (4,) that the controls say: dx, dy, lift, grip."""
        return np.array([self.dx.value, self.dy.value, float(self.lift.value), float(self.grip.value)])

    def step(self, down: int | None = None, right: int | None = None) -> None:
        """Take one step: where the sliders say, or as far as possible in a direction of the picture."""
        if down is not None:
            self.dx.value, self.dy.value = down * REACH, right * REACH
        if len(self.actions) < LONGEST:
            self.actions.append(self.action)
        self.draw()

    def take_back(self, everything: bool = False) -> None:
        del self.actions[0 if everything else -1:]
        self.draw()

    def keep(self) -> None:
        """Save the drive as a GIF in the run folder, under a number of its own."""
        names = (self.lab.folder / "drives" / f"drive-{number}.gif" for number in itertools.count(1))
        panels = {"model": self.imagine(self.actions)} | ({"robot": self.real(self.actions)} if self.robot else {})
        path = figures.gif(next(name for name in names if not name.exists()), panels, n_past=self.n_past)
        self.words.value = f"saved: {path}"

    def draw(self) -> None:
        """Show where the drive has come to."""
        now, count = self.imagine(self.actions), len(self.actions)
        self.stage.show({"the model": now[-1]}, bool(count))
        self.words.value = f"{count} of {LONGEST} steps; the model was trained on {self.futures.config.n_future}"
        if self.robot:
            truth = self.real(self.actions)
            difference = np.abs(truth.astype(np.int16) - now).astype(np.uint8)
            self.stage.show({"the simulated robot": truth[-1], "|difference|": difference[-1]}, bool(count))
            a, b = (to_video(torch.from_numpy(video[self.n_past:])).permute(0, 3, 1, 2) for video in (now, truth))
            scores = np.full(LONGEST, np.nan)
            scores[:count] = psnr(a, b).numpy()
            self.curve.value = curve({"model against robot": scores}, np.arange(1, LONGEST + 1),
                                     range_of(scores[:count], np.array([15, 30])), "step", "PSNR [dB]")
        self.undo.disabled = self.reset.disabled = self.save.disabled = not count
        for button in (*self.steps, self.go):
            button.disabled = count >= LONGEST
        self.look_ahead()

    def look_ahead(self) -> None:
        """Show the next frames, if the action at the controls is held."""
        future = self.imagine([*self.actions, *[self.action] * AHEAD])[-AHEAD:]
        self.ahead.show({f"+{step}": frame for step, frame in enumerate(future, 1)})
