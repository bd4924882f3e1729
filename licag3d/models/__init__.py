# SPDX-License-Identifier: Apache-2.0
"""One plain file per model or estimator; import the file that is needed (torch is loaded on use)."""
