"""Driving the robot: the learned model as a simulator that a user steers, beside what the robot would have done."""

from functools import partial
from itertools import product

import ipywidgets
import numpy as np
import torch

from lab5.data import Windows, to_video
from lab5.evaluation import predict
from lab5.metrics import psnr
from lab5.robot.simulator import REACH, Robot, sequence_rng
from lab5.workbook.film import difference, in_colours
from lab5.workbook.run import SIMULATION_SEED, Run, as_pictures
from lab5.workbook.widgets import MOST, WIDE, Stage, button, curves

ACTION = 4                                      # numbers of a condition that are the action; the rest is the position
LONGEST = 28                                    # frames of a drive
PAD = "↖↑↗←•→↙↓↘"                               # dx to the viewer, dy to the right: (-1, -1), (-1, 0), ... (1, 1)
PANELS = ("the model", "the simulated robot", "|difference|")


def steerable(lab: Run) -> bool:
    """Whether the model is told the actions and positions of the simulated robot, which then can be set in motion."""
    pack = lab.pack("test")
    if lab.config.condition == "none" or not (pack.simulated and pack.condition_dim):
        return False
    robot = Robot(sequence_rng(SIMULATION_SEED, "test", 0))
    return bool(np.abs(robot.frame().astype(float) - pack.frames[0, 0]).mean() < 1)             # of our seed


class Drive:
    """The user steers, and the model predicts what follows, each frame from its prediction before.

    The first frames are those of test sequence `index`. A button makes a move: an action for two frames, as in the
    data; the first move gets the frames that the context's last action leaves. The run must be `steerable`.
    """

    def __init__(self, lab: Run, index: int) -> None:
        self.index, self.moves, self.model = index, [], lab.model()
        self.n_past = self.model.config.n_past
        batch = Windows(lab.pack("test"), self.n_past)[index]
        self.context, self.before = batch.frames, batch.condition[:-1, 0, :ACTION].double().numpy()
        self.stage, self.words = Stage(PANELS), ipywidgets.HTML()
        self.curve = ipywidgets.Image(format="png", layout={"width": WIDE})
        self.lift, self.grip = (ipywidgets.Checkbox(False, description=name, indent=False)
                                for name in ("lift", "close the gripper"))
        self.steps = [button(sign, partial(self.step, *move)) for sign, move in zip(
            PAD, product((-1, 0, 1), repeat=2), strict=True)]
        self.undo = button("undo", self.take_back)
        self.reset = button("reset", partial(self.take_back, everything=True))
        pad = ipywidgets.GridBox(self.steps, layout={"grid_template_columns": "repeat(3, 3.4em)"})
        rest = ipywidgets.VBox([self.lift, self.grip, ipywidgets.HBox([self.undo, self.reset])])
        self.widget = ipywidgets.VBox([self.stage, ipywidgets.HBox([pad, rest]), self.words, self.curve])
        self.draw()

    @property
    def actions(self) -> list[np.ndarray]:
        """The action (4,) of every frame from the last context frame on; one begins at every even frame."""
        return [action for action in self.moves for _ in range(2)][(self.n_past - 1) % 2:]

    def follow(self, actions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What the model predicts, z at its mean, and what the robot does: (n_past + len(actions), H, W, 3) uint8 each.

        The model is told the robot's positions too. The last frame's own action, which leads beyond it, is the one
        before it.
        """
        robot = Robot(sequence_rng(SIMULATION_SEED, "test", self.index))
        actions, frames, rows = [*self.before, *actions], [robot.frame()], []
        for action in actions:
            rows.append([*action, *robot.position])
            robot.step(action)
            frames.append(robot.frame())
        condition = torch.tensor([*rows, [*actions[-1], *robot.position]], dtype=torch.float32)[:, None]
        predicted = as_pictures(self.context[:, 0])
        if len(frames) > self.n_past:
            noise = torch.zeros(len(actions), 1, self.model.noise_size)
            future = predict(self.model, self.context, condition, noise)
            predicted = np.concatenate([predicted, as_pictures(future[:, 0])])
        return predicted, np.stack(frames)

    def step(self, down: int, right: int) -> None:
        """Move as far as possible in a direction of the picture, lifting and gripping as the boxes say."""
        self.moves.append(np.array([down * REACH, right * REACH, self.lift.value, self.grip.value]))
        self.draw()

    def take_back(self, everything: bool = False) -> None:
        del self.moves[0 if everything else -1:]
        self.draw()

    def draw(self) -> None:
        """Show where the drive has come to."""
        count, (predicted, truth) = len(self.actions), self.follow(self.actions)
        wrong = in_colours(difference(truth[-1], predicted[-1]), MOST)
        self.stage.show(dict(zip(PANELS, (predicted[-1], truth[-1], wrong), strict=True)), bool(count))
        self.words.value = f"{count} of {LONGEST} steps; the model was trained on {self.model.config.n_future}"
        if count:
            a, b = (to_video(torch.from_numpy(video[self.n_past:]).movedim(-1, 1)) for video in (predicted, truth))
            self.curve.value = curves({"against the robot": psnr(a, b).numpy()}, self.n_past)
        self.undo.disabled = self.reset.disabled = not count
        for control in self.steps:
            control.disabled = count >= LONGEST
