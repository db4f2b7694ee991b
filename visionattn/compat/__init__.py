# SPDX-License-Identifier: Apache-2.0
"""Other packages' public interfaces on our kernels."""
