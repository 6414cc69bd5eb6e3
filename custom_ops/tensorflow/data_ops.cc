// The ops of the input pipeline, on the CPU only: each call runs on the thread that makes it, since a pipeline makes
// many at once.
#include <vector>

#include "../cpu/polygons.h"
#include "../cpu/resize.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_mrcnn {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::errors::InvalidArgument;
using tensorflow::errors::ResourceExhausted;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("KerasMrcnn>Resize")
    .Input("image: uint8")
    .Input("size: int32")
    .Output("resized: uint8")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      ShapeHandle image, size;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &image));
      TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(1, &size));
      TF_RETURN_IF_ERROR(c->WithRank(size, 2, &size));
      c->set_output(0, c->MakeShape({c->Dim(size, 0), c->Dim(size, 1), c->Dim(image, 2)}));
      return absl::OkStatus();
    })
    .Doc("Bilinear resize of an image [H, W, C] to `size`, (height, width), antialiased and rounded to 8 bits.");

class ResizeOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &image = context->input(0), &size = context->input(1);
    OP_REQUIRES(context, image.dims() == 3 && image.NumElements() > 0,
                InvalidArgument("Resize expects `image` [H, W, C], not empty. Received: ",
                                image.shape().DebugString(), "."));
    OP_REQUIRES(context, size.dims() == 1 && size.NumElements() == 2,
                InvalidArgument("Resize expects `size` [2], (height, width). Received a tensor of shape ",
                                size.shape().DebugString(), "."));
    const int32_t height = size.vec<int32_t>()(0), width = size.vec<int32_t>()(1);
    OP_REQUIRES(context, height > 0 && width > 0,
                InvalidArgument("Resize expects edges of `size` of at least 1. Received: ", height, ", ", width, "."));
    OP_REQUIRES(context, (image.dim_size(1) + width) * image.dim_size(2) < (int64_t{1} << 31),
                InvalidArgument("Resize expects rows of fewer than 2^31 values."));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {height, width, image.dim_size(2)}, &output));
    const int32_t status =
        keras_mrcnn_resize(image.flat<uint8_t>().data(), image.dim_size(0), image.dim_size(1), image.dim_size(2),
                           height, width, output->flat<uint8_t>().data());
    OP_REQUIRES(context, status == 0, ResourceExhausted("Resize: no memory left for the weights."));
  }
};

REGISTER_OP("KerasMrcnn>PolygonCrops")
    .Input("points: float")
    .Input("polygon_ends: int64")
    .Input("object_ends: int64")
    .Input("boxes: float")
    .Attr("size: int >= 1")
    .Output("crops: uint8")
    .SetShapeFn([](InferenceContext* c) -> absl::Status {
      int64_t size;
      TF_RETURN_IF_ERROR(c->GetAttr("size", &size));
      c->set_output(0, c->MakeShape({c->Dim(c->input(3), 0), c->MakeDim(size), c->MakeDim(size)}));
      return absl::OkStatus();
    })
    .Doc(R"(Binary crops [G, size, size] of the `boxes` [G, 4], (x1, y1, x2, y2), of G objects.

points: [P, 2], (x, y), of all polygons one after the other.
polygon_ends: [Q], where the points of each polygon end.
object_ends: [G], where the polygons of each object end; an object without any has an empty crop.)");

// Whether these are `count` positions in ascending order, the last of them `total`.
bool are_ends(const Tensor& ends, int64_t count, int64_t total) {
  if (ends.dims() != 1 || ends.NumElements() != count) return false;
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (ends.vec<int64_t>()(i) < last) return false;
    last = ends.vec<int64_t>()(i);
  }
  return last == total;
}

class PolygonCropsOp : public OpKernel {
 public:
  explicit PolygonCropsOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("size", &size_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &points = context->input(0), &polygon_ends = context->input(1), &object_ends = context->input(2),
                 &boxes = context->input(3);
    OP_REQUIRES(context, points.dims() == 2 && points.dim_size(1) == 2 && boxes.dims() == 2 && boxes.dim_size(1) == 4,
                InvalidArgument("PolygonCrops expects `points` [P, 2] and `boxes` [G, 4]. Received: ",
                                points.shape().DebugString(), " and ", boxes.shape().DebugString(), "."));
    const int64_t objects = boxes.dim_size(0), polygons = polygon_ends.NumElements();
    OP_REQUIRES(context,
                are_ends(polygon_ends, polygons, points.dim_size(0)) && are_ends(object_ends, objects, polygons),
                InvalidArgument("PolygonCrops expects `polygon_ends` [Q] and `object_ends` [G] in ascending order, the "
                                "last of them the number of points and of polygons."));
    Tensor* crops = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {objects, size_, size_}, &crops));
    std::vector<int64_t> ends(1, 0);
    for (int64_t i = 0; i < polygons; ++i) ends.push_back(polygon_ends.vec<int64_t>()(i));
    int64_t first = 0;
    for (int64_t i = 0; i < objects; ++i) {
      const int64_t last = object_ends.vec<int64_t>()(i);
      const int32_t status = keras_mrcnn_polygon_crop(points.flat<float>().data(), ends.data() + first, last - first,
                                                      boxes.flat<float>().data() + 4 * i, size_,
                                                      crops->flat<uint8_t>().data() + i * size_ * size_);
      OP_REQUIRES(context, status == 0, ResourceExhausted("PolygonCrops: no memory left."));
      first = last;
    }
  }

 private:
  int64_t size_;
};

REGISTER_KERNEL_BUILDER(Name("KerasMrcnn>Resize").Device(tensorflow::DEVICE_CPU), ResizeOp);
REGISTER_KERNEL_BUILDER(Name("KerasMrcnn>PolygonCrops").Device(tensorflow::DEVICE_CPU), PolygonCropsOp);

}  // namespace
}  // namespace keras_mrcnn
