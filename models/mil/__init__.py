"""An interpreter for Core ML's model intermediate language (MIL): it executes what a saved package says, in numpy.

Only the protobuf schema is coremltools'. Weight files, sub-byte numbers, compressed weights and every operation are
read and computed here, so that a fault in the conversion cannot hide behind the same fault in its check. It is for
checking, and slow.
"""

import logging
import os

# At its import coremltools speaks of frameworks and devices that Russet does not use it for.
logging.getLogger("coremltools").setLevel(logging.ERROR)
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
