// What the ops do on every device: read the attributes, check the arguments, make room for the results. A device
// adds a class with two static functions, and registers `RoiAlignOp` and `RoiAlignGradOp` of it:
//
//   absl::Status forward(OpKernelContext*, const RoiAlignArguments&, void* output)
//   absl::Status backward(OpKernelContext*, const RoiAlignArguments&, const void* output_gradient,
//                         const std::vector<void*>& gradients)
#ifndef KERAS_MRCNN_TENSORFLOW_ROI_ALIGN_OP_H_
#define KERAS_MRCNN_TENSORFLOW_ROI_ALIGN_OP_H_

#include <vector>

#include "../roi_align_geometry.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace keras_mrcnn {

// Of one call; the pointers are in the device's memory.
struct RoiAlignArguments {
  RoiAlignParameters parameters;
  std::vector<const void*> features;  // of each level
  const float* boxes;
  const int32_t* images;
  const int32_t* levels;  // null: chosen by the size of the box
};

class RoiAlignOpBase : public tensorflow::OpKernel {
 protected:
  explicit RoiAlignOpBase(tensorflow::OpKernelConstruction* construction);

  // Shapes are checked; what the tensors hold is the kernels' to check.
  absl::Status read(tensorflow::OpKernelContext* context, RoiAlignArguments* arguments) const;

  // Of the pooled regions; an error where there are more elements than can be counted.
  absl::Status output_shape(const RoiAlignParameters& parameters, tensorflow::TensorShape* shape) const;

 private:
  RoiAlignParameters attributes_;  // without what the arguments tell
};

template <typename Kernels>
class RoiAlignOp : public RoiAlignOpBase {
 public:
  explicit RoiAlignOp(tensorflow::OpKernelConstruction* construction) : RoiAlignOpBase(construction) {}

  void Compute(tensorflow::OpKernelContext* context) override {
    RoiAlignArguments arguments;
    OP_REQUIRES_OK(context, read(context, &arguments));
    tensorflow::TensorShape shape;
    OP_REQUIRES_OK(context, output_shape(arguments.parameters, &shape));
    tensorflow::Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    OP_REQUIRES_OK(context, Kernels::forward(context, arguments, output->data()));
  }
};

template <typename Kernels>
class RoiAlignGradOp : public RoiAlignOpBase {
 public:
  explicit RoiAlignGradOp(tensorflow::OpKernelConstruction* construction) : RoiAlignOpBase(construction) {}

  void Compute(tensorflow::OpKernelContext* context) override {
    RoiAlignArguments arguments;
    OP_REQUIRES_OK(context, read(context, &arguments));
    tensorflow::TensorShape shape;
    OP_REQUIRES_OK(context, output_shape(arguments.parameters, &shape));
    const tensorflow::Tensor* output_gradient;
    OP_REQUIRES_OK(context, context->input("output_gradient", &output_gradient));
    OP_REQUIRES(context, output_gradient->shape() == shape,
                tensorflow::errors::InvalidArgument(
                    "RoiAlignGrad expects `output_gradient` of the pooled regions' shape, ", shape.DebugString(),
                    ". Received: ", output_gradient->shape().DebugString(), "."));
    tensorflow::OpInputList features;
    OP_REQUIRES_OK(context, context->input_list("features", &features));
    std::vector<void*> gradients;
    for (int k = 0; k < features.size(); ++k) {
      tensorflow::Tensor* gradient = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(k, features[k].shape(), &gradient));
      gradients.push_back(gradient->data());
    }
    OP_REQUIRES_OK(context, Kernels::backward(context, arguments, output_gradient->data(), gradients));
  }
};

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_TENSORFLOW_ROI_ALIGN_OP_H_
