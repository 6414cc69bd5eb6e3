// The ops `KerasMrcnn>RoiAlign` and `KerasMrcnn>RoiAlignGrad`: what they are, and what is checked on every device.
#include "roi_align_op.h"

#include <string>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_mrcnn {

using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Shapes while a graph is built. An unknown dimension agrees with every other.

// Checks the inputs from `features` on, and gives what they have in common.
absl::Status merge_inputs(InferenceContext* context, int first, DimensionHandle* regions,
                          DimensionHandle* channels) {
  int levels;
  TF_RETURN_IF_ERROR(context->GetAttr("N", &levels));
  DimensionHandle batch = context->UnknownDim();
  *channels = context->UnknownDim();
  ShapeHandle shape;
  for (int k = first; k < first + levels; ++k) {
    TF_RETURN_IF_ERROR(context->WithRank(context->input(k), 4, &shape));
    TF_RETURN_IF_ERROR(context->Merge(batch, context->Dim(shape, 0), &batch));
    TF_RETURN_IF_ERROR(context->Merge(*channels, context->Dim(shape, 3), channels));
  }
  DimensionHandle four;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(first + levels), 2, &shape));
  TF_RETURN_IF_ERROR(context->WithValue(context->Dim(shape, 1), 4, &four));
  *regions = context->Dim(shape, 0);
  for (int k = first + levels + 1; k < context->num_inputs(); ++k) {
    TF_RETURN_IF_ERROR(context->WithRank(context->input(k), 1, &shape));
    TF_RETURN_IF_ERROR(context->Merge(*regions, context->Dim(shape, 0), regions));
  }
  return absl::OkStatus();
}

absl::Status pooled_shape(InferenceContext* context) {
  DimensionHandle regions, channels;
  TF_RETURN_IF_ERROR(merge_inputs(context, 0, &regions, &channels));
  int64_t height, width;
  TF_RETURN_IF_ERROR(context->GetAttr("output_height", &height));
  TF_RETURN_IF_ERROR(context->GetAttr("output_width", &width));
  context->set_output(
      0, context->MakeShape({regions, context->MakeDim(height), context->MakeDim(width), channels}));
  return absl::OkStatus();
}

absl::Status gradient_shapes(InferenceContext* context) {
  DimensionHandle regions, channels;
  TF_RETURN_IF_ERROR(merge_inputs(context, 1, &regions, &channels));
  ShapeHandle output_gradient;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 4, &output_gradient));
  for (int k = 0; k < context->num_outputs(); ++k) context->set_output(k, context->input(1 + k));
  return absl::OkStatus();
}

REGISTER_OP("KerasMrcnn>RoiAlign")
    .Input("features: N * T")
    .Input("boxes: float")
    .Input("images: int32")
    .Input("levels: L * int32")
    .Output("pooled: T")
    .Attr("N: int >= 1")
    .Attr("L: int >= 0")
    .Attr("T: {float, half, bfloat16}")
    .Attr("scales: list(float)")
    .Attr("output_height: int >= 1")
    .Attr("output_width: int >= 1")
    .Attr("sampling_ratio: int >= 0")
    .Attr("method: {'align', 'align_legacy', 'warp', 'pool'}")
    .Attr("reduction: {'average', 'maximum'}")
    .SetShapeFn(pooled_shape)
    .Doc(R"(
Regions of the feature maps of a batch, pooled to one size.

features: [B, H_k, W_k, C] of each of N pyramid levels, the finest first.
boxes: [R, 4], (x1, y1, x2, y2).
images: [R], the image of each box.
levels: nothing, and each box takes the level that fits its size; or one [R], the level of each box.
pooled: [R, output_height, output_width, C].
scales: feature pixels per unit of the boxes, of each level.
sampling_ratio: samples per bin and axis; 0: as many as the bin is long in feature pixels.
method: which points are sampled, as in roi_align_geometry.h.
reduction: of the samples of a bin; 'pool' has the maximum only.
)");

REGISTER_OP("KerasMrcnn>RoiAlignGrad")
    .Input("output_gradient: T")
    .Input("features: N * T")
    .Input("boxes: float")
    .Input("images: int32")
    .Input("levels: L * int32")
    .Output("gradients: N * T")
    .Attr("N: int >= 1")
    .Attr("L: int >= 0")
    .Attr("T: {float, half, bfloat16}")
    .Attr("scales: list(float)")
    .Attr("output_height: int >= 1")
    .Attr("output_width: int >= 1")
    .Attr("sampling_ratio: int >= 0")
    .Attr("method: {'align', 'align_legacy', 'warp', 'pool'}")
    .Attr("reduction: {'average', 'maximum'}")
    .SetShapeFn(gradient_shapes)
    .Doc(R"(
The gradient of KerasMrcnn>RoiAlign to its features.

output_gradient: [R, output_height, output_width, C].
gradients: of the shapes of features.
)");

namespace {

// The place of `name` among `names`, which are in the order of the geometry's enumeration. TensorFlow has
// checked that it is one of them.
int32_t place_of(const std::string& name, std::initializer_list<const char*> names) {
  int32_t place = 0;
  for (const char* other : names) {
    if (name == other) return place;
    ++place;
  }
  return -1;
}

absl::Status check_within(const char* what, int64_t value, int64_t low, int64_t high) {
  if (roi_within(value, low, high)) return absl::OkStatus();
  return InvalidArgument("RoiAlign expects ", what, " from ", low, " to ", high, ". Received: ", value, ".");
}

absl::Status check_shape(const char* what, bool right, const char* expected, const Tensor& tensor) {
  if (right) return absl::OkStatus();
  return InvalidArgument("RoiAlign expects ", what, " of shape ", expected,
                         ". Received: ", tensor.shape().DebugString(), ".");
}

absl::Status check_one_per_region(const char* what, const Tensor& tensor, int64_t regions) {
  if (tensor.dims() == 1 && tensor.dim_size(0) == regions) return absl::OkStatus();
  return InvalidArgument("RoiAlign expects `", what, "` of shape [", regions, "], one for each box. Received: ",
                         tensor.shape().DebugString(), ".");
}

absl::Status read_attributes(tensorflow::OpKernelConstruction* construction, RoiAlignParameters* p) {
  std::vector<float> scales;
  std::string method, reduction;
  tensorflow::DataType type;
  int inputs;
  TF_RETURN_IF_ERROR(construction->GetAttr("N", &p->levels));
  TF_RETURN_IF_ERROR(construction->GetAttr("L", &inputs));
  TF_RETURN_IF_ERROR(construction->GetAttr("T", &type));
  TF_RETURN_IF_ERROR(construction->GetAttr("scales", &scales));
  TF_RETURN_IF_ERROR(construction->GetAttr("output_height", &p->output_height));
  TF_RETURN_IF_ERROR(construction->GetAttr("output_width", &p->output_width));
  TF_RETURN_IF_ERROR(construction->GetAttr("sampling_ratio", &p->sampling_ratio));
  TF_RETURN_IF_ERROR(construction->GetAttr("method", &method));
  TF_RETURN_IF_ERROR(construction->GetAttr("reduction", &reduction));
  TF_RETURN_IF_ERROR(check_within("a number of pyramid levels", p->levels, 1, kRoiMostLevels));
  TF_RETURN_IF_ERROR(check_within("a number of tensors in `levels`", inputs, 0, 1));
  TF_RETURN_IF_ERROR(check_within("`output_height`", p->output_height, 1, kRoiLargestSide));
  TF_RETURN_IF_ERROR(check_within("`output_width`", p->output_width, 1, kRoiLargestSide));
  TF_RETURN_IF_ERROR(check_within("`sampling_ratio`", p->sampling_ratio, 0, kRoiLargestSamplingRatio));
  if (static_cast<int64_t>(scales.size()) != p->levels) {
    return InvalidArgument("RoiAlign expects one of `scales` for each of ", p->levels, " levels. Received: ",
                           scales.size(), ".");
  }
  for (int32_t k = 0; k < p->levels; ++k) {
    if (!(scales[k] > 0.0f && std::isfinite(scales[k]))) {
      return InvalidArgument("RoiAlign expects `scales` above 0 and finite. Received: ", scales[k], ".");
    }
    p->level[k].scale = scales[k];
  }
  p->method = place_of(method, {"align", "align_legacy", "warp", "pool"});
  p->reduction = place_of(reduction, {"average", "maximum"});
  if (p->method == ROI_POOL && p->reduction != ROI_MAXIMUM) {
    return InvalidArgument("RoiAlign expects the `reduction` maximum for the `method` pool. Received: ", reduction,
                           ".");
  }
  p->type = type == tensorflow::DT_HALF       ? ROI_FLOAT16
            : type == tensorflow::DT_BFLOAT16 ? ROI_BFLOAT16
                                              : ROI_FLOAT32;
  return absl::OkStatus();
}

absl::Status read_features(const tensorflow::OpInputList& features, RoiAlignArguments* arguments) {
  RoiAlignParameters& p = arguments->parameters;
  for (int k = 0; k < features.size(); ++k) {
    TF_RETURN_IF_ERROR(
        check_shape("`features`", features[k].dims() == 4, "[batch, height, width, channels]", features[k]));
    if (k == 0) p.batch = features[k].dim_size(0), p.channels = features[k].dim_size(3);
    if (features[k].dim_size(0) != p.batch || features[k].dim_size(3) != p.channels) {
      return InvalidArgument("RoiAlign expects `features` of one batch and one number of channels. Received: ",
                             features[0].shape().DebugString(), " at level 0 and ",
                             features[k].shape().DebugString(), " at level ", k, ".");
    }
    p.level[k].height = features[k].dim_size(1);
    p.level[k].width = features[k].dim_size(2);
    TF_RETURN_IF_ERROR(check_within("a height of `features`", p.level[k].height, 1, kRoiLargestSide));
    TF_RETURN_IF_ERROR(check_within("a width of `features`", p.level[k].width, 1, kRoiLargestSide));
    arguments->features.push_back(features[k].data());
  }
  TF_RETURN_IF_ERROR(check_within("a batch of `features`", p.batch, 0, kRoiMostRegions));
  return check_within("a number of channels of `features`", p.channels, 0, kRoiMostChannels);
}

}  // namespace

RoiAlignOpBase::RoiAlignOpBase(tensorflow::OpKernelConstruction* construction)
    : OpKernel(construction), attributes_() {
  OP_REQUIRES_OK(construction, read_attributes(construction, &attributes_));
}

absl::Status RoiAlignOpBase::read(tensorflow::OpKernelContext* context, RoiAlignArguments* arguments) const {
  arguments->parameters = attributes_;
  tensorflow::OpInputList features, levels;
  const Tensor *boxes, *images;
  TF_RETURN_IF_ERROR(context->input_list("features", &features));
  TF_RETURN_IF_ERROR(context->input("boxes", &boxes));
  TF_RETURN_IF_ERROR(context->input("images", &images));
  TF_RETURN_IF_ERROR(context->input_list("levels", &levels));
  TF_RETURN_IF_ERROR(read_features(features, arguments));
  TF_RETURN_IF_ERROR(check_shape("`boxes`", boxes->dims() == 2 && boxes->dim_size(1) == 4, "[regions, 4]", *boxes));
  const int64_t regions = arguments->parameters.regions = boxes->dim_size(0);
  TF_RETURN_IF_ERROR(check_within("a number of `boxes`", regions, 0, kRoiMostRegions));
  TF_RETURN_IF_ERROR(check_one_per_region("images", *images, regions));
  arguments->boxes = boxes->flat<float>().data();
  arguments->images = images->flat<int32_t>().data();
  arguments->levels = nullptr;
  if (levels.size() == 1) {
    TF_RETURN_IF_ERROR(check_one_per_region("levels", levels[0], regions));
    arguments->levels = levels[0].flat<int32_t>().data();
  }
  return absl::OkStatus();
}

absl::Status RoiAlignOpBase::output_shape(const RoiAlignParameters& p, TensorShape* shape) const {
  return TensorShape::BuildTensorShape({p.regions, p.output_height, p.output_width, p.channels}, shape);
}

}  // namespace keras_mrcnn
