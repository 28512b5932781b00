"""Where Dormouse's wire differs from AWS's model on purpose: facts, as patterns, and why. docs/wire-compat.md tells the same
to users. An entry that is no longer true fails the test."""

RECORDED = "AWS sends it, though no model names it"
ORDER = "AWS was recorded to complain of codeArtifact before buildRoleArn"
TYPE = "AWS was recorded to leave the optional members out"
EVERY_SERVICE = "of AWS's front, not of one service: models do not name it"

DIFFERENCES = {
    "Create*AuthToken.output.authToken.*": "the map has exactly one key, which the type spells out",
    "CreateMicrovmImage.input.order": ORDER,
    "UpdateMicrovmImage.input.order": ORDER,
    "*.output*.buildPhaseOverrides.type": RECORDED,
    "*.output*.roleConfiguration.type": RECORDED,
    "*.output*.terminationReasonCode.type": RECORDED,
    "*.output*.versionStateTimeBucket.type": RECORDED,
    "*MicrovmImage.output.id.type": RECORDED,
    "ListMicrovmImages.output.items.*.id.type": RECORDED,
    "ListMicrovmImages.output.items.*.updatedAt.type": RECORDED,
    "error.lambda-microvms.AccessDeniedException": "recorded with a capital Message: it comes from AWS's front",
    "error.lambda-microvms.InvalidParameterValueException": TYPE,
    "error.lambda-microvms.ResourceConflictException": "no operation on tags has a conflict: writes are repeated inside",
    "error.lambda-microvms.ServiceException": "InternalServerException, which is in the same model, is what Dormouse says",
    "error.lambda-microvms.TooManyRequestsException": "ThrottlingException, which is in the same model, is what Dormouse says",
    "error.lambda-core.InvalidParameterValueException": TYPE,
    "error.lambda-core.NetworkConnectorLimitExceededException": TYPE,
    "error.lambda-core.ResourceConflictException": TYPE,
    "error.lambda-core.ResourceNotFoundException": TYPE,
    "error.lambda-core.ServiceException": TYPE,
    "error.lambda-core.TooManyRequestsException": TYPE,
    "error.IncompleteSignatureException": EVERY_SERVICE,
    "error.InvalidSignatureException": EVERY_SERVICE,
    "error.MissingAuthenticationTokenException": EVERY_SERVICE,
    "error.RequestTooLargeException": EVERY_SERVICE,
    "error.SerializationException": EVERY_SERVICE,
    "error.UnknownOperationException": EVERY_SERVICE,
    "error.UnrecognizedClientException": EVERY_SERVICE,
}
