"""Driving the robot: the learned model as a simulator that a user steers, beside what the robot would have done."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import ipywidgets
import numpy as np
import torch

from lab5 import figures
from lab5.data import Pack, to_video
from lab5.evaluation import predict
from lab5.metrics import psnr
from lab5.simulator import REACH, Robot, sequence_rng
from lab5.widgets import Futures, Stage, as_pictures, checkbox, curve, range_of, slider, stack, watch
from lab5.workbook import SIMULATION_SEED, Workbook

ACTION = 4                                      # numbers of a condition that are the action; the rest is the position
AHEAD = 5                                       # predicted frames that are shown ahead
LONGEST = 28                                    # steps of a drive
# The pad: a sign, where the arm goes, and the signs of dx and dy, which point to the viewer and to the right
PAD = (("↖", "away and left", (-1, -1)), ("↑", "away", (-1, 0)), ("↗", "away and right", (-1, 1)),
       ("←", "left", (0, -1)), ("•", "stay", (0, 0)), ("→", "right", (0, 1)),
       ("↙", "near and left", (1, -1)), ("↓", "near", (1, 0)), ("↘", "near and right", (1, 1)))


def steerable(book: Workbook) -> bool:
    """Whether the model is told actions and positions."""
    return book.config.condition != "none" and book.pack("test").condition_dim > ACTION


class Motion:
    """Where an action takes the end-effector: p(t+1) = A [p(t), a(t), 1], fitted to a split by least squares.

    The model is told positions as well as actions, and of a future that was never driven there are none to read.
    """

    def __init__(self, pack: Pack) -> None:
        rows = np.asarray(pack.conditions[:512], dtype=np.float64)                              # (N, T, 7)
        before, after = rows[:, :-1].reshape(-1, rows.shape[-1]), rows[:, 1:, ACTION:].reshape(-1, 3)
        self._map = np.linalg.lstsq(np.column_stack([before, np.ones(len(before))]), after, rcond=None)[0]
        self._low, self._high = after.min(axis=0), after.max(axis=0)

    def __call__(self, position: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The next position (3,), within what the split has seen."""
        return (np.concatenate([action, position, [1.0]]) @ self._map).clip(self._low, self._high)


class Driven:
    """The simulated robot of a test sequence, which does after the context what it is told."""

    def __init__(self, index: int, context: np.ndarray) -> None:
        self._index, self._context = index, context             # actions (n_past - 1, 4) that lead to its last frame
        self._restart()

    def _restart(self) -> None:
        self._robot, self._done = Robot(sequence_rng(SIMULATION_SEED, "test", self._index)), []
        self.frames = [self._robot.frame()]
        for action in self._context:
            self._step(action)
        self._done.clear()

    def _step(self, action: np.ndarray) -> None:
        self._robot.step(action)
        self._done.append(tuple(action))
        self.frames.append(self._robot.frame())

    def follow(self, actions: list[np.ndarray]) -> np.ndarray:
        """Frames (n_past + len(actions), H, W, C) uint8; it begins anew only where the actions are not a sequel."""
        if [tuple(action) for action in actions[:len(self._done)]] != self._done:
            self._restart()
        for action in actions[len(self._done):]:
            self._step(action)
        return np.stack(self.frames)


class Drive:
    """The user steers; the model says what is seen next.

    Two frames of a test sequence are real, all others predicted, each from the prediction before it. Moving a slider
    shows the next frames at once, should the action be held; a button takes the step.

    Raises:
        ValueError: the model is told no actions, so there is nothing to steer.
    """

    def __init__(self, book: Workbook, index: int) -> None:
        self.book, self.index, self.futures = book, index, Futures(book)
        if not steerable(book):
            raise ValueError(f"{book.run}: this model is told no actions and positions, so there is nothing to steer")
        frames, condition = self.futures.window(index)
        self.seen = self.futures.config.n_past
        self.context, self.rows = frames[:self.seen], condition[:self.seen, 0].double().numpy()     # rows (n_past, 7)
        self.motion, self.actions = Motion(book.pack("train")), []
        self.noise = torch.randn(self.seen + LONGEST + AHEAD, 1, self.futures.model.noise_size,
                                 generator=torch.Generator().manual_seed(1))
        self.robot = self._real()
        self._build()
        self.draw()

    def _real(self) -> Driven | None:
        """The simulated robot itself, where the sequence is its own and can be made again."""
        if not self.futures.pack.simulated:
            return None
        robot = Driven(self.index, self.rows[:-1, :ACTION])
        same = np.abs(np.stack(robot.frames).astype(int) - as_pictures(self.context[:, 0])).mean() < 1
        return robot if same else None

    # ---- what follows from actions ----

    def told(self, actions: list[np.ndarray]) -> np.ndarray:
        """Conditions (n_past + len(actions), 7): the context's, then the actions and where they lead.

        The last frame's own action, which would lead beyond it, is the one before it.
        """
        rows = [*self.rows[:-1]]
        position = self.rows[-1, ACTION:]
        for action in actions:
            rows.append(np.concatenate([action, position]))
            position = self.motion(position, action)
        return np.stack([*rows, np.concatenate([actions[-1], position])])

    def imagine(self, actions: list[np.ndarray]) -> np.ndarray:
        """What the model sees after the actions: frames (n_past + len(actions), H, W, C) uint8."""
        seen = as_pictures(self.context[:, 0])
        if not actions:
            return seen
        condition = torch.from_numpy(self.told(actions)).float()[:, None]
        noise = self.noise[:len(condition) - 1] * float(self.sampled.value)
        return np.concatenate([seen, as_pictures(predict(self.futures.model, self.context, condition, noise)[:, 0])])

    # ---- the controls ----

    def _build(self) -> None:
        names = ("the model", "the simulated robot", "|difference|") if self.robot else ("the model",)
        self.stage, self.ahead = Stage(names), Stage([f"+{step}" for step in range(1, AHEAD + 1)], small=True)
        self.dx, self.dy = (slider(-REACH, REACH, 0, f"{name} [m]", 0.006, ".3f") for name in ("dx", "dy"))
        self.lift, self.grip, self.sampled = (checkbox(name) for name in ("lift", "close the gripper", "draw z"))
        self.steps = [self._button(text, why, functools.partial(self.step, *move)) for text, why, move in PAD]
        self.go = self._button("step", "take the step that the sliders say", self.step)
        self.undo = self._button("undo", "take the last step back", self.take_back)
        self.reset = self._button("reset", "back to the two real frames", functools.partial(self.take_back, True))
        self.save = self._button("save GIF", "keep the drive as a GIF", self.keep)
        self.curve, self.words = ipywidgets.HTML(), ipywidgets.HTML()
        watch([self.dx, self.dy, self.lift, self.grip], self.look_ahead)
        watch([self.sampled], self.draw)
        self.widget = stack(self.stage, self._steering(),
                            ipywidgets.HTML("What would be seen next, if this action were held:"), self.ahead,
                            self.words, *([self.curve] if self.robot else []))

    def _steering(self) -> ipywidgets.HBox:
        pad = ipywidgets.GridBox(self.steps, layout={"grid_template_columns": "repeat(3, 3.4em)", "flex": "none"})
        rows = [self.lift, self.grip, self.sampled], [self.go, self.undo, self.reset, self.save]
        return ipywidgets.HBox([pad, ipywidgets.VBox([self.dx, self.dy, *map(ipywidgets.HBox, rows)])])

    def _button(self, text: str, tooltip: str, action: Callable[[], None]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=text, tooltip=tooltip, layout={"width": "auto", "padding": "0 .9em"})
        button.on_click(lambda _: action())
        return button

    @property
    def action(self) -> np.ndarray:
        """The action (4,) that the controls say: dx, dy, lift, grip."""
        return np.array([self.dx.value, self.dy.value, float(self.lift.value), float(self.grip.value)])

    def step(self, down: int | None = None, right: int | None = None) -> None:
        """Take one step: where the sliders say, or as far as can be in a direction of the picture."""
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
        folder = self.book.run / "drives"
        number = next(number for number in itertools.count(1) if not (folder / f"drive-{number}.gif").exists())
        panels = {"model": self.imagine(self.actions)} | ({"robot": self.robot.follow(self.actions)}
                                                          if self.robot else {})
        path = figures.gif(folder / f"drive-{number}.gif", panels, n_past=self.seen)
        self.words.value = f"saved: {path}"

    def draw(self) -> None:
        """Show where the drive has come to."""
        now, count = self.imagine(self.actions), len(self.actions)
        shown, score = {"the model": now[-1]}, ""
        if self.robot:
            truth = self.robot.follow(self.actions)
            difference = np.abs(truth.astype(np.int16) - now).astype(np.uint8)
            shown |= {"the simulated robot": truth[-1], "|difference|": difference[-1]}
            score = self._score(now, truth)
        self.stage.show(shown, bool(count))
        self.undo.disabled = self.reset.disabled = self.save.disabled = not count
        for button in (*self.steps, self.go):
            button.disabled = count >= LONGEST
        end = ", and no more: undo or reset" if count >= LONGEST else ""
        self.words.value = (f"{count} step{'s' * (count != 1)}{score}{end}. The model was trained on "
                            f"{self.futures.config.n_future}.")
        self.look_ahead()

    def _score(self, now: np.ndarray, truth: np.ndarray) -> str:
        """Draw the PSNR of the drive so far, and say the last one."""
        a, b = (to_video(torch.from_numpy(video[self.seen:])).permute(0, 3, 1, 2) for video in (now, truth))
        scores = psnr(a, b).numpy()
        self.curve.value = curve({"model against robot": (np.arange(1, len(scores) + 1), scores)}, xlabel="step",
                                 ylabel="PSNR [dB]", x=(1, LONGEST), y=range_of(scores, np.array([15, 30])))
        return f", {scores[-1]:.1f} dB" if len(scores) else ""

    def look_ahead(self) -> None:
        """Show the next frames, should the action at the controls be held."""
        future = self.imagine([*self.actions, *[self.action] * AHEAD])[-AHEAD:]
        self.ahead.show({f"+{step}": frame for step, frame in enumerate(future, 1)})
