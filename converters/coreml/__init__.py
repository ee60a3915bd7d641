"""Export to Core ML: a decoder written down in MIL straight from its `DecoderConfig`, for iOS 18 and macOS 15."""

import russet.models.mil  # noqa: F401  # it quietens coremltools
