"""RELION's STAR labels, every one that the program reads or writes, named once."""

# Optimisation set
PARTICLES_FILE = "rlnTomoParticlesFile"
TOMOGRAMS_FILE = "rlnTomoTomogramsFile"
TRAJECTORIES_FILE = "rlnTomoTrajectoriesFile"

# Tomograms, global table
TOMO_NAME = "rlnTomoName"
TILT_SERIES_STAR_FILE = "rlnTomoTiltSeriesStarFile"
TILT_SERIES_NAME = "rlnTomoTiltSeriesName"
FRAME_COUNT = "rlnTomoFrameCount"
TOMO_SIZE_XYZ = ("rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ")
HAND = "rlnTomoHand"
TILT_SERIES_PIXEL_SIZE = "rlnTomoTiltSeriesPixelSize"
VOLTAGE = "rlnVoltage"
SPHERICAL_ABERRATION = "rlnSphericalAberration"
AMPLITUDE_CONTRAST = "rlnAmplitudeContrast"
OPTICS_GROUP_NAME = "rlnOpticsGroupName"
DEFOCUS_SLOPE = "rlnTomoDefocusSlope"
BFACTOR_PER_DOSE = "rlnCtfBfactorPerElectronDose"
DEFORMATION_GRID_XY = ("rlnTomoDeformationGridSizeX", "rlnTomoDeformationGridSizeY")
DEFORMATION_TYPE = "rlnTomoDeformationType"
RECONSTRUCTED_TOMOGRAM = "rlnTomoReconstructedTomogram"
RECONSTRUCTED_HALVES = (
    "rlnTomoReconstructedTomogramHalf1",
    "rlnTomoReconstructedTomogramHalf2",
)
TOMOGRAM_BINNING = "rlnTomoTomogramBinning"

# Tomograms, per-tilt table
MICROGRAPH_NAME = "rlnMicrographName"
PRE_EXPOSURE = "rlnMicrographPreExposure"
X_TILT = "rlnTomoXTilt"
Y_TILT = "rlnTomoYTilt"
Z_ROT = "rlnTomoZRot"
X_SHIFT = "rlnTomoXShiftAngst"
Y_SHIFT = "rlnTomoYShiftAngst"
PROJECTION_ROWS = ("rlnTomoProjX", "rlnTomoProjY", "rlnTomoProjZ", "rlnTomoProjW")
DEFOCUS_U = "rlnDefocusU"
DEFOCUS_V = "rlnDefocusV"
DEFOCUS_ANGLE = "rlnDefocusAngle"
CTF_SCALE = "rlnCtfScalefactor"
CTF_BFACTOR = "rlnCtfBfactor"
PHASE_SHIFT = "rlnPhaseShift"
DEFORMATION_COEFFICIENTS = "rlnTomoDeformationCoefficients"
NOMINAL_TILT = "rlnTomoNominalStageTiltAngle"

# Particles
PARTICLE_NAME = "rlnTomoParticleName"
PARTICLE_ID = "rlnTomoParticleId"
CENTERED_COORDINATE_XYZ = (
    "rlnCenteredCoordinateXAngst",
    "rlnCenteredCoordinateYAngst",
    "rlnCenteredCoordinateZAngst",
)
COORDINATE_XYZ = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")
ORIGIN_XYZ = ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst")
SUBTOMOGRAM_ANGLES = (
    "rlnTomoSubtomogramRot",
    "rlnTomoSubtomogramTilt",
    "rlnTomoSubtomogramPsi",
)
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
OPTICS_GROUP = "rlnOpticsGroup"
VISIBLE_FRAMES = "rlnTomoVisibleFrames"
IMAGE_NAME = "rlnImageName"
CTF_IMAGE = "rlnCtfImage"
RANDOM_SUBSET = "rlnRandomSubset"
GROUP_NUMBER = "rlnGroupNumber"
CLASS_NUMBER = "rlnClassNumber"
NORM_CORRECTION = "rlnNormCorrection"
LOG_LIKELIHOOD = "rlnLogLikeliContribution"
MAX_PROBABILITY = "rlnMaxValueProbDistribution"
SIGNIFICANT_SAMPLES = "rlnNrOfSignificantSamples"

# Optics
EVEN_ZERNIKE = "rlnEvenZernike"
ODD_ZERNIKE = "rlnOddZernike"
CTF_CORRECTED = "rlnCtfDataAreCtfCorrected"
CTF_PREMULTIPLIED = "rlnCtfDataAreCtfPremultiplied"
IMAGE_DIMENSIONALITY = "rlnImageDimensionality"
SUBTOMOGRAM_BINNING = "rlnTomoSubtomogramBinning"
IMAGE_PIXEL_SIZE = "rlnImagePixelSize"
IMAGE_SIZE = "rlnImageSize"

# General tables
ARE_2D_STACKS = "rlnTomoSubTomosAre2DStacks"
PARTICLE_NUMBER = "rlnParticleNumber"

# This program's own, in dropped.star
DROP_REASON = "rlnPseudoSubtomoDropReason"

# Fourier shell correlation
SPECTRAL_INDEX = "rlnSpectralIndex"
RESOLUTION = "rlnResolution"
ANGSTROM_RESOLUTION = "rlnAngstromResolution"
FSC = "rlnFourierShellCorrelation"
FINAL_RESOLUTION = "rlnFinalResolution"
UNFILTERED_HALVES = ("rlnUnfilteredMapHalf1", "rlnUnfilteredMapHalf2")

# This program's own, in average_fsc.star
RESOLUTION_AT_HALF = "rlnPseudoSubtomoResolutionAtHalf"

# This program's own, in the files of --positions2d
VISIBLE = "rlnPseudoSubtomoVisible"

# This program's own, in renamed_particles.star
FORMER_NAME = "rlnPseudoSubtomoFormerParticleName"
