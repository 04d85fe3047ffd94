"""Driving the robot: the learned model as a simulator that a user steers, beside what the robot would have done."""

from __future__ import annotations

import functools

import ipywidgets
import numpy as np
import torch

from lab5.data import Pack, Windows, to_video
from lab5.evaluation import predict
from lab5.metrics import psnr
from lab5.robot.simulator import REACH, Robot, sequence_rng
from lab5.workbook.figures import difference, in_colours
from lab5.workbook.run import SIMULATION_SEED, Run, as_pictures
from lab5.workbook.widgets import MOST, Curve, Stage, button

ACTION = 4                                      # numbers of a condition that are the action; the rest is the position
LONGEST = 28                                    # frames of a drive
# The pad: a sign, where the arm goes, and the signs of dx and dy, which point to the viewer and to the right
PAD = (("↖", "away and left", (-1, -1)), ("↑", "away", (-1, 0)), ("↗", "away and right", (-1, 1)),
       ("←", "left", (0, -1)), ("•", "stay", (0, 0)), ("→", "right", (0, 1)),
       ("↙", "near and left", (1, -1)), ("↓", "near", (1, 0)), ("↘", "near and right", (1, 1)))


def steerable(lab: Run) -> bool:
    """Whether the model is conditioned on actions and positions."""
    return lab.config.condition != "none" and lab.pack("test").condition_dim > ACTION


class Motion:
    """Where an action takes the end-effector: p(t+1) = A [a(t), p(t), 1], fitted to a split by least squares.

    The model is conditioned on positions as well as actions, and for a new drive no positions are recorded. An action
    holds for two frames and is carried out unevenly, so even and odd t have a map each.
    """

    def __init__(self, pack: Pack) -> None:
        rows = np.asarray(pack.conditions[:512], dtype=np.float64)                              # (N, T, 7)
        before = np.concatenate([rows, np.ones_like(rows[..., :1])], axis=-1)[:, :-1]
        after = rows[:, 1:, ACTION:]
        self._maps = [np.linalg.lstsq(before[:, phase::2].reshape(-1, before.shape[-1]),
                                      after[:, phase::2].reshape(-1, 3), rcond=None)[0] for phase in range(2)]
        self._low, self._high = after.min(axis=(0, 1)), after.max(axis=(0, 1))

    def __call__(self, position: np.ndarray, action: np.ndarray, t: int) -> np.ndarray:
        """The position (3,) at frame t + 1, within the range of the split, from that at frame t."""
        return (np.concatenate([action, position, [1.0]]) @ self._maps[t % 2]).clip(self._low, self._high)


class Drive:
    """The user steers, and the model predicts what follows, each frame from its prediction before.

    The first frames are those of test sequence `index`. A button makes a move: an action for two frames, as in the
    data; the first move gets the frames that the context's last action leaves. The run must be `steerable`.
    """

    def __init__(self, lab: Run, index: int) -> None:
        self.index, self.moves, self.model, pack = index, [], lab.model(), lab.pack("test")
        self.n_past = self.model.config.n_past
        batch = Windows(pack, self.n_past)[index]
        self.context, self.rows = batch.frames, batch.condition[:, 0].double().numpy()          # rows (n_past, 7)
        self.motion = Motion(pack)                              # the arm alone, which any split shows
        real = self.real([]) if pack.simulated else np.float64("inf")
        self.robot = bool(np.abs(real - as_pictures(self.context[:, 0]).astype(float)).mean() < 1)  # the same set
        self._build()
        self.draw()

    # What follows from actions ---------------------------------------------------------------------------

    @property
    def actions(self) -> list[np.ndarray]:
        """The action (4,) of every frame from the last context frame on; one begins at every even frame."""
        return [action for action in self.moves for _ in range(2)][(self.n_past - 1) % 2:]

    def conditions(self, actions: list[np.ndarray]) -> np.ndarray:
        """Conditions (n_past + len(actions), 7): the context's, then the actions and where they lead.

        The last frame's own action, which would lead beyond it, is the one before it.
        """
        rows, position = [*self.rows[:-1]], self.rows[-1, ACTION:]
        for action in actions:
            rows.append(np.concatenate([action, position]))
            position = self.motion(position, action, len(rows) - 1)
        return np.stack([*rows, np.concatenate([actions[-1], position])])

    def imagine(self, actions: list[np.ndarray]) -> np.ndarray:
        """What the model predicts under the actions, z at its mean: frames (n_past + len(actions), H, W, C) uint8."""
        context = as_pictures(self.context[:, 0])
        if not actions:
            return context
        condition = torch.from_numpy(self.conditions(actions)).float()[:, None]
        noise = torch.zeros(len(condition) - 1, 1, self.model.noise_size)
        future = predict(self.model, self.context, condition, noise)
        return np.concatenate([context, as_pictures(future[:, 0])])

    def real(self, actions: list[np.ndarray]) -> np.ndarray:
        """What the simulated robot does under the actions, after the context: frames like those of `imagine`."""
        robot = Robot(sequence_rng(SIMULATION_SEED, "test", self.index))
        frames = [robot.frame()]
        for action in (*self.rows[:-1, :ACTION], *actions):
            robot.step(action)
            frames.append(robot.frame())
        return np.stack(frames)

    # The controls ----------------------------------------------------------------------------------------

    def _build(self) -> None:
        names = ("the model", "the simulated robot", "|difference|") if self.robot else ("the model",)
        self.stage, self.curve, self.words = Stage(names), Curve(), ipywidgets.HTML()
        self.lift, self.grip = (ipywidgets.Checkbox(False, description=name, indent=False)
                                for name in ("lift", "close the gripper"))
        self.steps = [button(sign, functools.partial(self.step, *move), why) for sign, why, move in PAD]
        self.undo = button("undo", self.take_back, "take the last move back")
        self.reset = button("reset", functools.partial(self.take_back, everything=True), "back to the context frames")
        pad = ipywidgets.GridBox(self.steps, layout={"grid_template_columns": "repeat(3, 3.4em)"})
        rest = ipywidgets.VBox([self.lift, self.grip, ipywidgets.HBox([self.undo, self.reset])])
        self.widget = ipywidgets.VBox([self.stage, ipywidgets.HBox([pad, rest]), self.words, self.curve])

    def step(self, down: int, right: int) -> None:
        """Move as far as possible in a direction of the picture, lifting and gripping as the boxes say."""
        if len(self.actions) < LONGEST:
            self.moves.append(np.array([down * REACH, right * REACH, self.lift.value, self.grip.value]))
        self.draw()

    def take_back(self, everything: bool = False) -> None:
        del self.moves[0 if everything else -1:]
        self.draw()

    def draw(self) -> None:
        """Show where the drive has come to."""
        now, count = self.imagine(self.actions), len(self.actions)
        self.stage.show({"the model": now[-1]}, bool(count))
        self.words.value = f"{count} of {LONGEST} steps; the model was trained on {self.model.config.n_future}"
        if self.robot:
            truth = self.real(self.actions)
            wrong = in_colours(difference(truth[-1], now[-1]), MOST)
            self.stage.show({"the simulated robot": truth[-1], "|difference|": wrong}, bool(count))
        if self.robot and count:
            a, b = (to_video(torch.from_numpy(video[self.n_past:]).movedim(-1, 1)) for video in (now, truth))
            self.curve.show({"against the robot": psnr(a, b).numpy()}, self.n_past)
        self.undo.disabled = self.reset.disabled = not count
        for control in self.steps:
            control.disabled = count >= LONGEST
