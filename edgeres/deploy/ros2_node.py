"""A ROS 2 node that classifies camera images: sensor_msgs/Image in, vision_msgs/Classification out (Humble, Jazzy).

    python3 -m edgeres.deploy.ros2_node --ros-args -p bundle:=resnet18.edgeres -p topic:=/camera/image_raw

`edgeres deploy BUNDLE --to ros2` writes it as a package with a launch file.

Parameters:
    bundle     directory of the bundle
    topic      topic of the images; answers are published to ``classification``
    backend    auto, tensorrt, rtx, cuda or cpu
    top_k      number of classes in a message
    min_score  classes below this probability are left out; a message without classes is sent, too
    threads    threads on the CPU; 0: every core

While an image is classified, only the newest one waits: the subscription is best effort and keeps one message, so slow
inferences drop images but add no delay. The answer has the image's header, so that a message_filters synchronizer can
match both.

The image callback has its own callback group, which runs it one at a time. With the multithreaded executor, a timer or
service in another group runs meanwhile; ONNX Runtime and TensorRT release the GIL.
"""

from __future__ import annotations

import sys
from typing import Any

import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import Classification, ObjectHypothesis

from edgeres.errors import EdgeresError
from edgeres.runtime import Classifier, Frame

DEFAULTS = {"bundle": "", "topic": "image", "backend": "auto", "top_k": 5, "min_score": 0.0, "threads": 0}
NEWEST = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
SECONDS_BETWEEN_COMPLAINTS = 5.0
IMAGES_BETWEEN_HEALTH = 256


class ClassifierNode(Node):
    """Subscribes to images and publishes their classes.

    Raises:
        EdgeresError: the bundle cannot be run here.
    """

    def __init__(self) -> None:
        super().__init__("edgeres_classifier")
        value = {name: self.declare_parameter(name, default).value for name, default in DEFAULTS.items()}
        self.top_k, self.min_score = value["top_k"], value["min_score"]
        self.classify = Classifier(value["bundle"], backend=value["backend"], threads=value["threads"])
        self.classify.warm_up()
        self.answered = 0
        self.told = False
        self.get_logger().info(f"{value['bundle']} on {self.classify.backend}")
        for line in self.classify.passed_over:
            self.get_logger().info(f"not on {line}")
        self.publisher = self.create_publisher(Classification, "classification", 10)
        self.subscription = self.create_subscription(
            Image, value["topic"], self.on_image, NEWEST, callback_group=MutuallyExclusiveCallbackGroup()
        )

    def on_image(self, image: Any) -> None:
        # the Frame uses the message's encoding, step and padding; an engine for such frames takes it as it is, and
        # otherwise nothing is copied before the resize
        frame = Frame(image.data, image.encoding, image.height, image.width, image.step, big_endian=image.is_bigendian)
        try:
            prediction = self.classify(frame)
            if not self.told:
                self.get_logger().info(f"frames: {self.classify.way(frame)}")
                self.told = True
        except EdgeresError as error:  # a bad image or an unknown encoding does not end the node
            self.get_logger().error(str(error), throttle_duration_sec=SECONDS_BETWEEN_COMPLAINTS)
            return
        answer = Classification()
        answer.header = image.header
        answer.results = [
            ObjectHypothesis(class_id=label, score=score)
            for label, score in prediction.top(self.top_k)
            if score >= self.min_score
        ]
        self.publisher.publish(answer)
        self.answered += 1
        if self.answered % IMAGES_BETWEEN_HEALTH == 0:
            for line in self.classify.health().findings:
                self.get_logger().error(f"the camera's images: {line}")

    def destroy_node(self) -> None:
        super().destroy_node()
        self.classify.close()


def main(args: list[str] | None = None) -> int:
    rclpy.init(args=args)
    node = None
    try:
        node = ClassifierNode()
        executor = MultiThreadedExecutor(num_threads=2)
        executor.add_node(node)
        try:
            executor.spin()
        finally:
            executor.shutdown()  # waits for a callback that is running
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except EdgeresError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
