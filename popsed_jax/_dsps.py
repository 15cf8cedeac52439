"""The one place that imports DSPS.

Importing DSPS switches JAX's global ``jax_enable_x64`` on. A library that changes the precision of everybody's arrays
as a side effect of ``import`` is a bad neighbour, so the flag is put back to what the user had. In float32 everything
taken from DSPS here was measured to be safe (dust curves, metallicity weights); its age weights are not (differences of
cumulative mass cancel) and are not used.
"""

import jax

_x64_before = jax.config.read("jax_enable_x64")
try:
    from dsps.cosmology import flat_wcdm
    from dsps.data_loaders.load_ssp_data import load_ssp_templates
    from dsps.dust.att_curves import RV_C00, noll09_k_lambda
    from dsps.sed.metallicity_weights import calc_lgmet_weights_from_lognormal_mdf
finally:
    jax.config.update("jax_enable_x64", _x64_before)

__all__ = ["RV_C00", "calc_lgmet_weights_from_lognormal_mdf", "flat_wcdm", "load_ssp_templates", "noll09_k_lambda"]
