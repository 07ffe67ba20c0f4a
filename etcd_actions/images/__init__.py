"""Images of tasks as the SDK defines them, without containers.

The SDK describes an image by layers, and queries by its name whether it was built. Here no image is
built: the local executor installs the packages of the layers into a virtual environment.
"""

from etcd_actions.images.builds import Executing, ImageBuilds, build_task_spec, is_build
from etcd_actions.images.definition import (
    Definition,
    IndexOptions,
    Packages,
    Project,
    Requirements,
    Step,
    Wheels,
    parse_image,
)
from etcd_actions.images.image_definitions import Images, StoredImage, UnusedImage
from etcd_actions.images.reference import ImageReference, parse_reference
from etcd_actions.images.unsupported import Problem, refusal, unsupported_parts

__all__ = [
    "Definition",
    "Executing",
    "ImageBuilds",
    "ImageReference",
    "Images",
    "IndexOptions",
    "Packages",
    "Problem",
    "Project",
    "Requirements",
    "Step",
    "StoredImage",
    "UnusedImage",
    "Wheels",
    "build_task_spec",
    "is_build",
    "parse_image",
    "parse_reference",
    "refusal",
    "unsupported_parts",
]
